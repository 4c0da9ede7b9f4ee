"""Selections: what they say of a matrix, what they refuse and in which words, and that they cannot
be changed.
"""

import copy
import io
import pickle

import oracle
import pytest
import torch
from helpers.selections import SELECTIONS, SHAPE, mask_of

import sparse_ft as sft
from sparse_ft.ops.layout import Layout


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


def test_mask_nnz_density_and_shape(selection):
    mask = mask_of(selection)
    assert torch.equal(selection.mask(SHAPE), mask)
    assert selection.nnz(SHAPE) == mask.sum().item() and isinstance(selection.nnz(SHAPE), int)
    assert selection.density(SHAPE) == mask.sum().item() / 70
    assert selection.values_shape(SHAPE) == oracle.values_shape(*selection.layout, SHAPE)
    assert selection.values_shape(torch.Size(SHAPE)) == selection.values_shape(list(SHAPE))


def test_padding_does_not_count():
    blocks = SELECTIONS["ragged blocks"]
    assert blocks.nnz(SHAPE) == 12 + 6 + 4 + 2 < blocks.values_shape(SHAPE).numel() == 48


def test_gather_and_scatter(selection):
    matrix = torch.randn(SHAPE)
    values = selection.gather(matrix)
    assert oracle.same_bits(values, oracle.gather(matrix, selection.layout))
    assert selection.gather(matrix, dtype=torch.float64).dtype == torch.float64
    other = torch.zeros(SHAPE)
    assert selection.scatter_(other, values) is other
    assert torch.equal(other, torch.where(mask_of(selection), matrix, 0))


def test_from_mask_gives_the_selection_back(selection):
    again = sft.from_mask(
        selection.mask(SHAPE),
        selection.kind,
        selection.block_size if selection.kind == "blocks" else None,
    )
    assert (
        again == selection
        and again.kind == selection.kind
        and again.block_size == selection.block_size
    )
    as_entries = sft.from_mask(selection.mask(SHAPE))
    assert isinstance(as_entries, sft.Entries) and torch.equal(
        as_entries.mask(SHAPE), selection.mask(SHAPE)
    )


def test_from_mask_of_everything_and_of_an_int_block_size():
    everything = torch.ones(SHAPE, dtype=torch.bool)
    assert sft.from_mask(everything, "blocks", 4) == sft.Blocks(
        [[r, c] for r in range(2) for c in range(3)], (4, 4)
    )
    assert sft.from_mask(everything, "rows") == sft.Rows(list(range(7)))
    assert sft.from_mask(everything.T, "columns") == sft.Columns(list(range(7)))


@pytest.mark.parametrize(
    "mask, keywords, error, message",
    [
        (torch.ones(3, 3), {}, TypeError, r"mask: .*torch.float32 \(3, 3\)"),
        (torch.ones(3, dtype=torch.bool), {}, TypeError, r"mask: .*torch.bool \(3,\)"),
        ([[True]], {}, TypeError, r"mask: .*\[\[True\]\]"),
        (torch.zeros(3, 3, dtype=torch.bool), {}, ValueError, "index: an empty selection"),
        (
            torch.zeros(3, 3, dtype=torch.bool),
            {"kind": "rows"},
            ValueError,
            "index: an empty selection",
        ),
        (
            torch.ones(3, 3, dtype=torch.bool),
            {"kind": "diagonal"},
            ValueError,
            "kind: .*'diagonal'",
        ),
        (torch.ones(3, 3, dtype=torch.bool), {"kind": "blocks"}, ValueError, "block_size: .*None"),
        (
            torch.ones(3, 3, dtype=torch.bool),
            {"kind": "blocks", "block_size": 0},
            ValueError,
            "block_size: .*0",
        ),
        (
            torch.ones(3, 3, dtype=torch.bool),
            {"kind": "blocks", "block_size": (2, -1)},
            ValueError,
            r"block_size: .*\(2, -1\)",
        ),
        (
            torch.ones(3, 3, dtype=torch.bool),
            {"kind": "blocks", "block_size": "4"},
            ValueError,
            "block_size: .*'4'",
        ),
        (
            torch.eye(3).bool(),
            {"kind": "rows"},
            ValueError,
            r"mask: not made of whole rows: entry \(0, 1\)",
        ),
        (
            torch.eye(3).bool(),
            {"kind": "columns"},
            ValueError,
            r"mask: not made of whole columns: entry \(0, 1\)",
        ),
        (
            torch.eye(3).bool(),
            {"kind": "blocks", "block_size": 2},
            ValueError,
            r"mask: not made of whole blocks: entry \(0, 1\)",
        ),
    ],
)
def test_from_mask_errors(mask, keywords, error, message):
    with pytest.raises(error, match=message):
        sft.from_mask(mask, **keywords)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_every_integer_dtype_is_held_as_int32(dtype):
    source = torch.tensor([1, 4], dtype=dtype)
    selection = sft.Rows(source)
    source.zero_()
    assert selection.index.dtype == torch.int32 and selection.index.tolist() == [1, 4]
    assert selection == sft.Rows([1, 4]) == sft.Rows((1, 4)) == sft.Rows(torch.arange(6)[1::3])


def test_nothing_can_be_assigned_or_deleted(selection):
    for name in ("index", "block_size", "kind", "anything"):
        with pytest.raises(AttributeError, match=f"{name}: .*immutable"):
            setattr(selection, name, 1)
    with pytest.raises(AttributeError, match="index: .*immutable"):
        del selection.index


def test_equality_and_hash(selection):
    for other in SELECTIONS.values():
        assert (selection == other) == (selection is other)
    again = type(selection)(
        selection.index.clone(), *([selection.block_size] if selection.kind == "blocks" else [])
    )
    assert (
        again == selection
        and hash(again) == hash(selection)
        and again is not selection
        and len({again, selection}) == 1
    )
    assert selection != "all" and selection != selection.index.tolist()


def test_equal_indices_of_other_kinds_are_not_equal():
    assert (
        len(
            {
                sft.Rows([0, 1]),
                sft.Columns([0, 1]),
                sft.Entries([0, 1]),
                sft.Rows([0, 2]),
                sft.Rows([0]),
            }
        )
        == 5
    )
    assert sft.Blocks([[0, 0]], 4) != sft.Blocks([[0, 0]], (4, 2))


def test_copies(selection):
    buffer = io.BytesIO()
    torch.save(selection, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(selection),
        copy.copy(selection),
        pickle.loads(pickle.dumps(selection)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert (
            other == selection
            and other.mask(SHAPE).equal(selection.mask(SHAPE))
            and repr(other) == repr(selection)
        )
        with pytest.raises((IndexError, ValueError)):
            other.check((3, 4))
    assert copies[0].index.data_ptr() != selection.index.data_ptr()


def test_to(selection):
    assert selection.to("cpu") is selection and selection.to(torch.device("meta")) is selection
    if torch.cuda.is_available():
        there = selection.to("cuda")
        assert there.index.is_cuda and there == selection and there.to("cpu") == selection
        assert torch.equal(
            there.gather(torch.ones(SHAPE, device="cuda")).cpu(),
            selection.gather(torch.ones(SHAPE)),
        )


def test_repr_says_what_and_how_many(selection):
    text = repr(selection)
    assert text.startswith(type(selection).__name__) and f"{len(selection)} selected" in text


def used(selection, dim):
    return mask_of(selection).any(1 - dim).nonzero().squeeze(1)


@pytest.mark.parametrize("dim", [0, 1])
def test_restrict_gives_the_features_and_a_layout_on_them(selection, dim):
    features, layout = selection.restrict(dim, SHAPE[dim])
    matrix = torch.randn(SHAPE)
    if features is None:
        assert selection.kind == "entries" or selection.kind != ("rows", "columns")[dim]
        assert selection.kind != "blocks" or len(used(selection, dim)) == SHAPE[dim]
        features = torch.arange(SHAPE[dim])
    else:
        assert features.dtype == torch.int64 and torch.equal(features, used(selection, dim))
    part = matrix.index_select(dim, features)
    assert oracle.same_bits(oracle.gather(part, layout), selection.gather(matrix))


def test_equal_features_are_one_tensor():
    first, second = sft.Columns([0, 3]), sft.Columns([0, 3])
    assert first.restrict(1, 10)[0] is second.restrict(1, 10)[0] is first.restrict(1, 10)[0]
    blocks = [sft.Blocks([[row, 1]], (3, 4)) for row in (0, 1)]
    assert blocks[0].restrict(1, 10)[0] is blocks[1].restrict(1, 10)[0]
    assert first.restrict(1, 10)[0] is not sft.Columns([0, 4]).restrict(1, 10)[0]


def test_restrict_of_a_block_past_the_edge_depends_on_the_size():
    blocks = sft.Blocks([[0, 2]], (3, 4))
    assert blocks.restrict(1, 10)[0].tolist() == [8, 9] and blocks.restrict(1, 12)[0].tolist() == [
        8,
        9,
        10,
        11,
    ]


HUGE = (70000, 70000)


def test_entries_past_2_to_the_31():
    last = HUGE[0] * HUGE[1] - 1
    selection = sft.Entries([5, 2**31, last])
    assert selection.index.dtype == torch.int64
    assert selection.nnz(HUGE) == 3 and selection.density(HUGE) == 3 / HUGE[0] / HUGE[1]
    selection.check(HUGE)
    with pytest.raises(IndexError, match=rf"index: flat position {last} .*\(69999, 70000\)"):
        selection.check((69999, 70000))
    row, column = selection.layout.places(HUGE)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [
        divmod(k, 70000) for k in (5, 2**31, last)
    ]
    features, layout = selection.restrict(1, 70000)
    assert features is None and torch.equal(layout[1], selection.index)
    assert pickle.loads(pickle.dumps(selection)).index.dtype == torch.int64
    virtual = torch.arange(70000.0).expand(HUGE)
    assert selection.gather(virtual).tolist() == [5, 2**31 % 70000, 69999]


def test_the_largest_int32_is_held_as_int32():
    assert (
        sft.Entries([2**31 - 1]).index.dtype == torch.int32
        and sft.Entries([2**31]).index.dtype == torch.int64
    )
    assert sft.Entries([2**62]).index.tolist() == [2**62]
    source = torch.tensor([5, 2**40])
    selection = sft.Entries(source)
    source.zero_()
    assert selection.index.tolist() == [5, 2**40]


def test_lines_and_blocks_of_a_matrix_past_2_to_the_31():
    assert (
        sft.Rows([69999]).nnz(HUGE) == 70000
        and sft.Rows(list(range(70000))).nnz(HUGE) == 4_900_000_000
    )
    assert sft.Columns([0, 69999]).values_shape(HUGE) == (70000, 2)
    blocks = sft.Blocks([[0, 0], [1, 1]], (65536, 65536))
    assert blocks.nnz(HUGE) == 65536**2 + 4464**2
    last_block = torch.tensor([[4374, 4374]], dtype=torch.int32)
    row, column = Layout("blocks", last_block, 16, 16).places(HUGE)
    assert row.max() == 69999 and (row.max() * 70000 + column.max()).item() == HUGE[0] * HUGE[1] - 1
    virtual = torch.arange(70000.0).expand(HUGE)
    assert torch.equal(
        sft.Blocks([[4374, 4374]], 16).gather(virtual)[0, 15], torch.arange(69984.0, 70000)
    )


def test_an_index_edited_after_it_was_checked_is_refused():
    selection = sft.Rows([0, 1])
    module = sft.nn.SelectiveLinear.from_linear(torch.nn.Linear(4, 4), selection)
    selection.index.fill_(10**6)
    for use in (
        lambda: selection.gather(torch.zeros(4, 4)),
        lambda: module(torch.zeros(1, 4)),
        lambda: selection.layout,
        lambda: selection.to("cpu:0"),  # as to a matrix on another device
    ):
        with pytest.raises(ValueError, match="index: it was changed in place"):
            use()


SMALL, LARGE = (6, 8), (12, 16)


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
def test_a_selection_chosen_on_a_matrix_refuses_every_other(kind):
    mask = torch.zeros(SMALL, dtype=torch.bool)
    part = {
        "rows": mask[1],
        "columns": mask[:, 3],
        "blocks": mask[2:4, 2:4],
        "entries": mask[2, 5:7],
    }[kind]
    part.fill_(True)
    selection = sft.from_mask(mask, kind, 2 if kind == "blocks" else None)
    assert selection.matrix_shape == SMALL
    copies = [copy.deepcopy(selection), pickle.loads(pickle.dumps(selection)), selection.to("cpu")]
    for known in (selection, *copies):
        assert known == selection and known.nnz(SMALL) == int(mask.sum())
        with pytest.raises(ValueError, match=r"\(12, 16\).* chosen on \(6, 8\)"):
            known.values_shape(LARGE)
    moved = selection.on(LARGE)
    assert moved == selection and moved.matrix_shape == LARGE and selection.matrix_shape == SMALL
    assert moved.mask(LARGE)[:6, :8].any() or kind == "entries"


def test_on_looks_at_the_ends_and_a_selection_written_by_hand_serves_what_it_fits():
    selection = sft.Columns([1, 7])
    assert selection.matrix_shape is None
    assert selection.nnz((2, 8)) == 4 and selection.nnz((3, 9)) == 6
    with pytest.raises(IndexError, match=r"column 7 is out of range.*\(8, 7\)"):
        selection.on((8, 7))
    with pytest.raises(ValueError, match="2 dimensions"):
        selection.on((8,))


def test_digests_tell_selections_apart():
    every = [
        *SELECTIONS.values(),
        sft.Rows([1, 2]),
        sft.Columns([1, 2]),
        sft.Entries([1, 2]),
        sft.Rows([1, 3]),
        sft.Rows([1]),
        sft.Blocks([[1, 2]], 2),
        sft.Blocks([[1, 2]], (2, 3)),
        sft.Blocks([[2, 1]], 2),
    ]
    for one in every:
        assert len(one.digest) == 32
        for other in every:
            assert (one.digest == other.digest) == (one == other)
    assert (
        sft.Rows(torch.tensor([1, 2], dtype=torch.int32)).on((4, 4)).digest
        == copy.deepcopy(sft.Rows([1, 2])).digest
    )


@pytest.mark.parametrize("cls", [sft.Rows, sft.Columns, sft.Entries])
def test_a_second_index_is_refused(cls):
    """Rows and columns of single entries, as two lists, would train other entries
    without a word.
    """
    with pytest.raises(
        TypeError, match=r"index: .* takes one index.*row \* columns \+ column.*from_mask"
    ):
        cls(torch.tensor([2, 3]), torch.tensor([1, 2]))

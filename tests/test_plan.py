"""Plans: a mapping that checks what it is given, and files that hold it."""

import copy
import json
import pickle
import random

import pytest
import safetensors.torch
import torch

import sparse_ft as sft
from sparse_ft import _tensorfile

PLAN = sft.Plan(
    {
        "layers.0.weight": sft.Rows([1, 4]),
        "layers.1.weight": sft.Columns([0, 3]),
        "head.bias": "all",
        "layers.2.weight": sft.Blocks([[0, 1], [2, 0]], (3, 4)),
        "ünï.code": sft.Entries([5, 2**31, 2**40]),
    }
)


def test_is_a_mapping():
    assert (
        len(PLAN) == 5
        and list(PLAN)[2] == "head.bias"
        and PLAN["head.bias"] == "all"
        and "absent" not in PLAN
    )
    assert PLAN == dict(PLAN) == sft.Plan(PLAN) == sft.Plan(PLAN.items()) and PLAN != sft.Plan(
        {**PLAN, "x": "all"}
    )
    assert PLAN.get("absent") is None and dict(**{"a.b": PLAN["head.bias"]}) == {"a.b": "all"}
    with pytest.raises(KeyError):
        PLAN["absent"]
    with pytest.raises(TypeError):
        PLAN["x"] = "all"
    assert not sft.Plan() and sft.Plan() == {}


def test_does_not_follow_the_dict_it_was_made_from():
    source = {"a": "all"}
    plan = sft.Plan(source)
    source["b"] = "all"
    assert list(plan) == ["a"]


def test_or_adds_and_overrides():
    more = PLAN | {"head.bias": sft.Rows([0]), "x": "all"}
    assert (
        isinstance(more, sft.Plan)
        and more["head.bias"] == sft.Rows([0])
        and more["x"] == "all"
        and len(more) == 6
    )
    assert PLAN["head.bias"] == "all" and len(PLAN) == 5
    assert sft.Plan({"a": "all"}) | sft.Plan({"b": "all"}) == {"a": "all", "b": "all"}
    with pytest.raises(TypeError):
        PLAN | [("a", "all")]
    with pytest.raises(TypeError, match="plan: .*'x', got 3"):
        PLAN | {"x": 3}


@pytest.mark.parametrize(
    "items, message",
    [
        ({3: "all"}, "plan: .*names, got 3"),
        ({"x": "some"}, "plan: .*'x', got 'some'"),
        ({"x": None}, "plan: .*'x', got None"),
        ({"x": [1, 2]}, r"plan: .*'x', got \[1, 2\]"),
        ({"x": torch.tensor([1])}, r"plan: .*'x', got tensor\(\[1\]\)"),
        (3, "plan: expected a mapping .* got 3"),
        ("model.plan", "plan: expected a mapping .* got 'model.plan'"),
        (None, "plan: expected a mapping .* got None"),
        (["weight"], r"plan: expected a mapping .* got \['weight'\]"),
        ({"x": torch.ones(2, 2).bool()}, "plan: .*'x', got tensor"),
        ({"x": sft.Rows}, "plan: .*'x', got <class"),
    ],
)
def test_errors_name_the_entry(items, message):
    with pytest.raises(TypeError, match=message):
        sft.Plan(items)


def test_repr_names_every_entry():
    assert all(repr(name) in repr(PLAN) for name in PLAN) and "Columns(2 selected" in repr(PLAN)


def test_copies():
    assert copy.deepcopy(PLAN) == PLAN and pickle.loads(pickle.dumps(PLAN)) == PLAN


def test_saved_and_loaded_is_equal_in_order_and_dtype(tmp_path):
    for path in (tmp_path / "p.plan", str(tmp_path / "q.plan")):
        PLAN.save(path)
        loaded = sft.Plan.load(path)
        assert loaded == PLAN and list(loaded) == list(PLAN) and isinstance(loaded, sft.Plan)
        for name, what in PLAN.items():
            assert what == "all" or (
                type(loaded[name]) is type(what) and loaded[name].index.dtype == what.index.dtype
            )
    sft.Plan().save(tmp_path / "empty")
    assert sft.Plan.load(tmp_path / "empty") == {}


def test_selected_plan_round_trip(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 10))
    for structure in ("rows", "columns", "blocks", "entries", "entries_per_row"):
        plan = sft.select(model, density=0.2, structure=structure, block_size=(4, 6))
        plan.save(tmp_path / "p")
        assert sft.Plan.load(tmp_path / "p") == plan


def test_safetensors_reads_a_plan(tmp_path):
    PLAN.save(tmp_path / "p")
    tensors = safetensors.torch.load_file(tmp_path / "p")
    with safetensors.safe_open(tmp_path / "p", "pt") as file:
        document = json.loads(file.metadata()["sparse_ft"])
    assert document["format"] == "sparse_ft.plan" and document["version"] == 1
    for name, what in PLAN.items():
        described = document["plan"][name]
        assert (
            described == "all"
            if what == "all"
            else torch.equal(tensors[described["index"]], what.index)
        )


def test_a_plan_that_safetensors_wrote_is_read(tmp_path):
    plan = {
        "a": "all",
        "b": {"kind": "blocks", "index": "i", "block_size": [2, 3]},
        "c": {"kind": "rows", "index": "j"},
    }
    document = {"format": "sparse_ft.plan", "version": 1, "plan": plan}
    tensors = {"i": torch.tensor([[0, 1]]), "j": torch.tensor([3, 4], dtype=torch.int32)}
    safetensors.torch.save_file(tensors, tmp_path / "p", {"sparse_ft": json.dumps(document)})
    assert sft.Plan.load(tmp_path / "p") == {
        "a": "all",
        "b": sft.Blocks([[0, 1]], (2, 3)),
        "c": sft.Rows([3, 4]),
    }


ROWS = {"kind": "rows", "index": "i", "block_size": [1, 1]}
I = {"i": torch.tensor([1, 4])}  # noqa: E741


@pytest.mark.parametrize(
    "document, tensors",
    [
        *(
            (document, I)
            for document in (
                None,
                [],
                "text",
                {},
                {"format": "sparse_ft.plan", "plan": {}},
                {"format": "sparse_ft.plan", "version": 2, "plan": {}},
                {"format": "sparse_ft.plan", "version": "1", "plan": {}},
                {"format": "sparse_ft.delta", "version": 1, "plan": {}},
                {"format": "sparse_ft.plan", "version": 1},
            )
        ),
        *(
            ({"format": "sparse_ft.plan", "version": 1, "plan": plan}, I)
            for plan in (
                None,
                [],
                3,
                "all",
                {"x": "some"},
                {"x": 3},
                {"x": None},
                {"x": []},
                {"x": {}},
                {"x": {**ROWS, "kind": "diagonal"}},
                {"x": {**ROWS, "kind": []}},
                {"x": {**ROWS, "index": "j"}},
                {"x": {**ROWS, "index": {}}},
                {"x": {**ROWS, "kind": "blocks"}},
                {"x": {"kind": "rows"}},
            )
        ),
        *(
            (
                {
                    "format": "sparse_ft.plan",
                    "version": 1,
                    "plan": {"x": {**ROWS, "kind": "blocks", "block_size": size}},
                },
                {"i": torch.tensor([[0, 1]])},
            )
            for size in (None, 4, [], [0, 1], [1.5, 2], [1, 2, 3], "ab", {})
        ),
        *(
            ({"format": "sparse_ft.plan", "version": 1, "plan": {"x": ROWS}}, {"i": index})
            for index in (
                torch.tensor([4, 1]),
                torch.tensor([1, 1]),
                torch.tensor([-1, 4]),
                torch.tensor([1.0]),
                torch.tensor([True]),
                torch.tensor([[1, 2]]),
                torch.empty(0, dtype=torch.int64),
                torch.tensor(3),
            )
        ),
    ],
    ids=repr,
)
def test_files_that_hold_no_plan_are_refused_by_name(tmp_path, document, tensors):
    _tensorfile.save(tmp_path / "bad.plan", tensors, document)
    with pytest.raises(ValueError, match="path: .*bad.plan"):
        sft.Plan.load(tmp_path / "bad.plan")


def test_a_foreign_version_is_named(tmp_path):
    _tensorfile.save(
        tmp_path / "new.plan", {}, {"format": "sparse_ft.plan", "version": 2, "plan": {}}
    )
    with pytest.raises(ValueError, match=r"new.plan.*version 1"):
        sft.Plan.load(tmp_path / "new.plan")


def test_a_file_of_weights_is_refused_by_name(tmp_path):
    safetensors.torch.save_file(
        {"weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="path: .*model.safetensors"):
        sft.Plan.load(tmp_path / "model.safetensors")
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="path: .*model.pt"):
        sft.Plan.load(tmp_path / "model.pt")


SMALL = sft.Plan({"a": sft.Blocks([[0, 1], [2, 0]], (3, 4)), "b": "all"})


def test_every_truncation_is_refused(tmp_path):
    SMALL.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut"):
            sft.Plan.load(tmp_path / "cut")


def test_flipped_bytes_give_a_sound_plan_or_are_refused(tmp_path):
    SMALL.save(tmp_path / "whole")
    whole, generator, refused = (tmp_path / "whole").read_bytes(), random.Random(1), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 1, 1, 4))):
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        (tmp_path / "flipped").write_bytes(damaged)
        try:
            plan = sft.Plan.load(tmp_path / "flipped")
        except ValueError as error:
            assert "flipped" in str(error)
            refused += 1
        else:
            for what in plan.values():
                assert what == "all" or what.nnz((2**40, 2**40)) > 0
    assert refused > 100


def test_an_interrupted_save_leaves_the_old_plan(tmp_path, monkeypatch):
    SMALL.save(tmp_path / "p")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        PLAN.save(tmp_path / "p")
    assert sft.Plan.load(tmp_path / "p") == SMALL and [f.name for f in tmp_path.iterdir()] == ["p"]


def linear(in_features, out_features):
    return torch.nn.Sequential(torch.nn.Linear(in_features, out_features))


@pytest.mark.parametrize("structure", ["rows", "columns", "blocks", "entries"])
def test_a_plan_of_a_smaller_model_is_refused_with_both_shapes(tmp_path, structure):
    small, large = linear(8, 6), linear(16, 12)
    plan = sft.select(small, density=0.3, structure=structure, block_size=2, targets="0.weight")
    plan.save(tmp_path / "p")
    forms = [
        plan,
        sft.Plan.load(tmp_path / "p"),
        dict(plan),
        plan | {"0.bias": "all"},
        copy.deepcopy(plan),
    ]
    before = {name: value.clone() for name, value in large.state_dict().items()}
    for other in forms:
        with pytest.raises(
            ValueError, match=r"plan: '0.weight': .*\(12, 16\).* chosen on \(6, 8\)"
        ):
            sft.convert(large, other)
        assert type(large[0]) is torch.nn.Linear and all(
            p.requires_grad for p in large.parameters()
        )
        assert all(torch.equal(before[name], value) for name, value in large.state_dict().items())
        twin = linear(8, 6)
        sft.convert(twin, other)
        assert twin[0].selection == plan["0.weight"]


def test_a_file_without_shapes_fits_whatever_holds_its_indices(tmp_path):
    """As plans were saved before they knew shapes, and as those written by hand are."""
    sft.Plan({"0.weight": sft.Columns([1, 9])}).save(tmp_path / "p")
    plan = sft.Plan.load(tmp_path / "p")
    assert plan["0.weight"].matrix_shape is None
    for model in (linear(16, 12), linear(10, 3)):
        sft.convert(model, plan)
    with pytest.raises(IndexError, match=r"plan: '0.weight': .*column 9 .*\(6, 8\)"):
        sft.convert(linear(8, 6), plan)


@pytest.mark.parametrize(
    "shape",
    [
        "6, 8",
        6,
        {},
        [6],
        [6, 8, 2],
        [6, 8.0],
        [6, True],
        [0, 8],
        [-6, 8],
        [4, 8],
        [None, 8],
        [[6], 8],
    ],
    ids=repr,
)
def test_shapes_that_no_matrix_has_are_refused(tmp_path, shape):
    described = {"kind": "rows", "index": "i", "block_size": [1, 1], "matrix_shape": shape}
    document = {"format": "sparse_ft.plan", "version": 1, "plan": {"x": described}}
    _tensorfile.save(tmp_path / "bad.plan", I, document)
    with pytest.raises(ValueError, match="path: .*bad.plan"):
        sft.Plan.load(tmp_path / "bad.plan")

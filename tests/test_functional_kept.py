"""What the autograd functions keep for backward, and for how long."""

import gc
import weakref

import pytest
import torch
from helpers.products import IN, KINDS, OUT, SELECTIONS, randn

import sparse_ft as sft
from sparse_ft import functional, rebuild
from sparse_ft.functional import selective_addmm, selective_linear

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=KINDS)
def one_of_each_kind(request):
    return SELECTIONS[request.param]


def bytes_of(part):
    """Of a kept copy in fp64; on a GPU each token starts on 16 bytes."""
    columns = part.size(-1)
    apart = columns + columns % 2 if part.is_cuda else columns
    return part.numel() // columns * apart * 8


def saved_by(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = function()
    return out, saved


@pytest.mark.parametrize("name, features", [("columns", [0, 3, 9]), ("blocks", [0, 1, 2, 3, 8, 9])])
def test_only_the_needed_part_of_the_input_is_kept_and_it_is_a_copy(name, features):
    selection, base, input = SELECTIONS[name], randn(OUT, IN, grad=False), randn(5, IN, grad=False)
    values = selection.gather(base).requires_grad_()
    _, saved = saved_by(lambda: selective_linear(input, base, values, selection))
    (part,) = saved
    assert torch.equal(part, input[:, features]) and part.untyped_storage().nbytes() == bytes_of(
        part
    )


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[0, 0]]
)
def test_of_an_input_of_any_layout_just_the_part_is_copied(make):
    selection, base, input = (
        SELECTIONS["columns"],
        randn(OUT, IN, grad=False),
        make(randn(4, 6, IN, grad=False)),
    )
    values = selection.gather(base).requires_grad_()
    _, saved = saved_by(lambda: selective_linear(input, base, values, selection))
    (part,) = saved
    assert torch.equal(part.reshape(-1, 3), input[..., [0, 3, 9]].reshape(-1, 3))
    assert part.untyped_storage().nbytes() == bytes_of(part)


@pytest.mark.parametrize("name", ["rows", "entries"])
def test_rows_and_entries_keep_the_input_itself(name):
    selection, base, input = SELECTIONS[name], randn(OUT, IN, grad=False), randn(5, IN, grad=False)
    values = selection.gather(base).requires_grad_()
    _, saved = saved_by(lambda: selective_linear(input, base, values, selection))
    assert [t.data_ptr() for t in saved] == [input.data_ptr()]


def test_addmm_keeps_the_rows_it_needs():
    selection, base, input = (
        SELECTIONS["rows"],
        randn(OUT, IN, grad=False),
        randn(5, OUT, grad=False),
    )
    values = selection.gather(base).requires_grad_()
    _, saved = saved_by(
        lambda: selective_addmm(input, base, values, selection, randn(IN, grad=False))
    )
    assert [t.shape for t in saved] == [(5, 3)]


def test_nothing_is_kept_where_nothing_needs_a_gradient():
    selection, base, input = SELECTIONS["columns"], randn(OUT, IN, grad=False), randn(5, IN)
    values = selection.gather(base)
    _, saved = saved_by(lambda: selective_linear(input, base, values, selection))
    assert [t.data_ptr() for t in saved] == [base.data_ptr()]
    with torch.no_grad():
        out, saved = saved_by(
            lambda: selective_linear(input, base, values.requires_grad_(), selection)
        )
    assert saved == [] and not out.requires_grad
    with torch.inference_mode():
        assert not selective_linear(input, base, values, selection).requires_grad


def test_one_copy_of_the_columns_serves_all_who_read_the_same_input():
    base, input = randn(OUT, IN, grad=False), randn(5, IN, grad=False)
    first, second, other = sft.Columns([0, 3]), sft.Columns([0, 3]), sft.Columns([0, 4])
    parts = []
    for selection in (first, second, other):
        values = selection.gather(base).requires_grad_()
        out, saved = saved_by(lambda: selective_linear(input, base, values, selection))  # noqa: B023
        parts.append((out, saved[0]))
    pointers = [part.data_ptr() for _, part in parts]
    assert pointers[0] == pointers[1] != pointers[2]


def test_inputs_that_look_alike_are_not_confused():
    """The same features of another tensor, of the same shape, dtype and version, while the first
    copy lives.
    """
    base, selection = randn(OUT, IN, grad=False), sft.Columns([0, 3])
    values, inputs = (
        selection.gather(base).requires_grad_(),
        [randn(5, IN, grad=False) for _ in range(2)],
    )
    outs = [selective_linear(input, base, values, selection) for input in inputs]
    for input, out in zip(inputs, outs, strict=True):
        (grad,) = torch.autograd.grad(out.sum(), values)
        assert torch.allclose(grad, input.sum(0)[[0, 3]].expand(OUT, 2))


def test_a_changed_input_is_copied_again():
    base, input, selection = (
        randn(OUT, IN, grad=False),
        randn(5, IN, grad=False),
        sft.Columns([0, 3]),
    )
    values, grads = selection.gather(base).requires_grad_(), []
    outs = [selective_linear(input, base, values, selection)]
    input.mul_(2)
    outs.append(selective_linear(input, base, values, selection))
    for out in outs:
        grads.append(torch.autograd.grad(out.sum(), values)[0])
    assert torch.allclose(grads[1], 2 * grads[0])


def test_kept_copies_die_with_their_graph():
    base, input, selection = (
        randn(OUT, IN, grad=False),
        randn(5, IN, grad=False),
        sft.Columns([0, 3]),
    )
    values = selection.gather(base).requires_grad_()
    out, saved = saved_by(lambda: selective_linear(input, base, values, selection))
    reference = weakref.ref(saved.pop())
    del out
    gc.collect()
    assert reference() is None


def test_a_step_between_forward_and_backward_is_noticed(one_of_each_kind):
    base, input = randn(OUT, IN, grad=False), randn(5, IN)
    values = one_of_each_kind.gather(base).requires_grad_()
    out = selective_linear(input, base, values, one_of_each_kind)
    one_of_each_kind.scatter_(base, values.detach() + 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_copy_for_a_gpu_starts_each_token_on_16_bytes(autocast, monkeypatch):
    """41 columns lie 48 apart (44 in fp32), and give the bits that they give without."""
    found = []
    for aligned in (False, True):
        monkeypatch.setattr(rebuild, "wants_alignment", lambda input, aligned=aligned: aligned)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, 5, 100, generator=generator, requires_grad=True)
        weight = torch.randn(30, 100, generator=generator)
        selection = sft.Columns(torch.arange(0, 82, 2))
        values = selection.gather(weight).requires_grad_()
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(x.device.type, torch.bfloat16, enabled=autocast),
        ):
            y = sft.functional.selective_linear(x * 1, weight, values, selection)
        y.float().square().sum().backward()
        (columns,) = (each for each in kept if each.shape == (15, 41))
        apart = {(False, False): 41, (False, True): 44, (True, False): 41, (True, True): 48}
        assert columns.stride() == (apart[autocast, aligned], 1)
        assert columns.dtype == y.dtype
        found.append((y, x.grad, values.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_rows_of_a_table_are_added_in_the_order_of_the_tokens():
    """Both ways to add, of which a GPU has the same bits at every run with the second alone."""
    generator = torch.Generator().manual_seed(0)
    slot = torch.randint(5, (300,), generator=generator)
    rows = torch.randn(300, 7, generator=generator)
    by_slot = torch.zeros(5, 7)
    for token, place in enumerate(slot.tolist()):
        by_slot[place] += rows[token]
    for is_ordered in (True, False):
        sums = functional._sums(torch.zeros(5, 7), slot, rows, is_ordered)
        torch.testing.assert_close(sums, by_slot, rtol=1e-5, atol=1e-5)
    assert torch.equal(functional._sums(torch.zeros(5, 7), slot, rows, True), by_slot)

"""wgrad_of_kept, a layer's own short cut, against the op; and what takes the short cut."""

import importlib

import torch

import sparse_ft as sft
from sparse_ft import ops
from sparse_ft.ops._library import HAS_TRITON
from sparse_ft.ops.layout import Layout

wgrad = importlib.import_module("sparse_ft.ops.selected_wgrad")  # the op has the file's name
OUT, IN = 12, 40
BF16, FP32 = torch.bfloat16, torch.float32


def problem(count=8, tokens=6, dtype=BF16, device="cpu"):
    """A gradient, what is kept of an input's columns, and their layout."""
    generator = torch.Generator().manual_seed(count + tokens)
    grad_output = torch.randn(tokens, OUT, generator=generator).to(device, dtype)
    kept = torch.randn(tokens, count, generator=generator).to(device, dtype)
    layout = Layout("columns", torch.arange(count, dtype=torch.int32, device=device))
    return grad_output, kept, layout


def unusual(device):
    """Problems by what is unusual about them."""
    grad_output, kept, layout = problem(device=device)
    blocks = sft.Blocks(torch.tensor([[0, 0], [1, 0]]), 4).to(device)
    features, of_blocks = blocks.restrict(1, IN)
    return {
        "a count that is no multiple of 8": problem(count=9, device=device),
        "no columns": problem(count=0, device=device),
        "no tokens": problem(tokens=0, device=device),
        "float32": problem(dtype=FP32, device=device),
        "float64": problem(dtype=torch.float64, device=device),
        "a transposed gradient": (grad_output.T.contiguous().T, kept, layout),
        "an expanded gradient": (grad_output[:1].expand(6, OUT), kept, layout),
        "features apart": (grad_output, kept.repeat(1, 2)[:, :8], layout),
        "a subclass": (grad_output.as_subclass(Marked), kept, layout),
        "blocks": (grad_output, kept[:, : features.numel()].contiguous(), of_blocks),
    }


class Marked(torch.Tensor):
    pass


def test_the_bits_are_those_of_the_op(device):
    problems = {"plain": problem(device=device), **unusual(device)}
    for why, each in problems.items():
        got, want = ops.wgrad_of_kept(*each), ops.selected_wgrad(*each)
        assert got.dtype == want.dtype and got.shape == want.shape, why
        assert torch.equal(got, want), why


def test_what_is_unusual_goes_through_the_op(device, monkeypatch):
    asked = []
    monkeypatch.setattr(wgrad, "selected_wgrad", lambda *given: asked.append(given))
    for why, each in unusual(device).items():
        ops.wgrad_of_kept(*each)
        assert len(asked) == 1 and asked.pop()[1] is each[1], why


def test_whole_columns_on_a_gpu_go_to_the_library_at_once(device, monkeypatch):
    asked = []
    monkeypatch.setattr(wgrad, "selected_wgrad", lambda *given: asked.append(given))
    ops.wgrad_of_kept(*problem(device=device))
    assert len(asked) == (device.type == "cpu" or not HAS_TRITON)

"""The launchers of the CUDA kernels, with the CPU core behind them: what they check and hand over.

Nothing is read back.
"""

import contextlib
import ctypes
import types

import oracle
import pytest
import torch
from adamw_problem import Problem
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft
from sparse_ft import ops
from sparse_ft.ops import _native
from sparse_ft.ops._registry import OPS

pytestmark = pytest.mark.skipif(_native.C is None, reason="no compiled part")
STREAM = 77
masked_adamw_cuda_ = OPS["masked_adamw_"].backends["cuda"]
masked_adamw_triton_ = OPS["masked_adamw_"].backends["triton"]


def number(address):
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_float))


class Core:
    """`sparse_ft._C` whose CUDA kernels run on the CPU."""

    why_not = ""

    def __init__(self, core):
        self.core, self.calls = core, []

    def __getattr__(self, name):
        return getattr(self.core, name)

    def why_not_on_cuda_device(self, index):
        return self.why_not

    def gather_selected_cuda(self, matrix, where, values, stream):
        self.calls.append(stream)
        self.core.gather_selected(matrix, where, values, 0, 1)

    def masked_adamw_cuda_(
        self, tensors, grads, settings, maximize, grad_scale, found_inf, skip_nonfinite, stream
    ):
        self.calls.append(stream)
        if found_inf and number(found_inf)[0]:
            return
        inv_scale = 1 / number(grad_scale)[0] if grad_scale else 1.0
        if self.core.masked_adamw_(
            tensors, grads, settings, maximize, inv_scale, skip_nonfinite, 1
        ):
            number(found_inf)[0] = 1


class NothingReadBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def core(monkeypatch):
    core = Core(_native.C)
    monkeypatch.setattr(_native, "C", core)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=STREAM)
    )
    _native.why_not_on.cache_clear()
    yield core
    monkeypatch.undo()
    _native.why_not_on.cache_clear()


def pair(**keywords):
    torch.manual_seed(3)
    one = Problem(**keywords)
    torch.manual_seed(3)
    return one, Problem(**keywords)


@pytest.mark.parametrize("found", (None, 0.0, 1.0))
@pytest.mark.parametrize("bad", (False, True))
def test_masked_adamw_steps_without_a_look_from_the_host(core, monkeypatch, found, bad):
    problem, want = pair(weight_dtype=torch.bfloat16)
    for each in (problem, want):
        if bad and found is not None:
            each.grads[1].view(-1)[2] = float("inf")
    keywords = dict(maximize=True, grad_scale=torch.tensor(4.0), skip_nonfinite=found is not None)
    flags = [None if found is None else torch.tensor(found) for _ in range(2)]
    versions = [t._version for t in problem.state]
    with NothingReadBack():
        problem.step(masked_adamw_cuda_, found_inf=flags[0], **keywords)
    assert core.calls == [STREAM]
    assert all(t._version > v for t, v in zip(problem.state, versions))
    monkeypatch.undo()
    want.step(ops.masked_adamw_, found_inf=flags[1], **keywords)
    assert flags[0] == flags[1]
    assert all(oracle.same_bits(a, b) for a, b in zip(problem.state, want.state))


def test_the_learning_rate_is_read_where_it_lies(core, monkeypatch):
    problem, want = pair(weight_dtype=torch.bfloat16)
    want.hyper["lr"] = [torch.tensor(lr).item() for lr in want.hyper["lr"]]
    lrs = [torch.tensor(lr) for lr in want.hyper["lr"]]
    with NothingReadBack():
        problem.step(masked_adamw_cuda_, lr=[1e3] * len(lrs), lrs=lrs)
    monkeypatch.undo()
    want.step(ops.masked_adamw_)
    assert all(oracle.same_bits(a, b) for a, b in zip(problem.state, want.state))


def test_masked_adamw_takes_gradients_and_indices_of_any_strides(core, monkeypatch):
    problem, want = pair(kinds=("rows", "entries"))
    problem.grads[0] = problem.grads[0].t().contiguous().t()
    kind, index, *block = problem.layouts[1]
    problem.layouts[1] = kind, torch.stack([index, index], 1)[:, 0], *block
    problem.step(masked_adamw_cuda_)
    assert core.calls == [STREAM]
    monkeypatch.undo()
    want.step(ops.masked_adamw_)
    assert all(oracle.same_bits(a, b) for a, b in zip(problem.state, want.state))


@pytest.mark.parametrize("stored", ("by chance", "corrected", "8 bits", "8 bits corrected"))
def test_masked_adamw_hands_over_how_state_is_stored(core, monkeypatch, stored):
    problem, want = pair(dtype=torch.bfloat16, stored=stored)
    with NothingReadBack():
        problem.step(masked_adamw_cuda_)
    assert core.calls == [STREAM]
    monkeypatch.undo()
    want.step(ops.masked_adamw_)
    assert all(torch.equal(a, b) for a, b in zip(problem.state, want.state))


@pytest.mark.parametrize("stored", ("by chance", "corrected", "8 bits", "8 bits corrected"))
def test_what_the_triton_kernel_does_not_store_goes_to_the_reference(stored):
    problem, want = pair(dtype=torch.bfloat16, stored=stored)
    problem.step(masked_adamw_triton_)
    want.step(ops.masked_adamw_)
    assert all(torch.equal(a, b) for a, b in zip(problem.state, want.state))


@pytest.mark.parametrize("what", ("generations", "factors", "origins"))
def test_masked_adamw_hands_over_what_varies(core, monkeypatch, what):
    problem, want = pair(weight_dtype=torch.bfloat16)
    varied = {
        "generations": [torch.randint(3, v.shape, dtype=torch.uint8) for v in problem.values],
        "factors": [torch.rand(v.shape[:1]) for v in problem.values],
        "origins": [torch.randn(v.shape) for v in problem.values],
    }
    keywords = {what: varied[what]}
    if what == "generations":
        keywords["births"] = [torch.arange(3.0) - 5 for _ in problem.values]
    with NothingReadBack():
        problem.step(masked_adamw_cuda_, **keywords)
    assert core.calls == [STREAM]
    monkeypatch.undo()
    want.step(ops.masked_adamw_, **keywords)
    assert all(torch.equal(a, b) for a, b in zip(problem.state, want.state))


@pytest.mark.parametrize("name", ("grads", "steps", "indices", "lrs"))
def test_a_tensor_elsewhere_is_refused_by_name(core, name):
    problem = Problem(kinds=("rows",), plain=())
    kind, index, *block = problem.layouts[0]
    lrs = None
    if name == "indices":
        problem.layouts[0] = kind, index.to("meta"), *block
    elif name == "lrs":
        lrs = [torch.ones((), device="meta")]
    else:
        getattr(problem, name)[0] = getattr(problem, name)[0].to("meta")
    with pytest.raises(ValueError, match=f"{name}: expected every tensor on cpu"):
        problem.step(masked_adamw_cuda_, lrs=lrs)
    assert not core.calls


def test_no_tensors_is_no_launch(core):
    empty = dict.fromkeys(("lr", "beta1", "beta2", "eps", "weight_decay"), [])
    masked_adamw_cuda_([], [], [], [], [], [], [], [], [], **empty)
    assert not core.calls


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_gather_hands_over_what_the_cpu_gathers(core, kind):
    matrix = torch.randn(9, 14)
    layout = oracle.layout(kind, matrix.shape, "some", block=(4, 5))
    with NothingReadBack():
        values = OPS["gather_selected"].backends["cuda"](matrix, *layout, dtype=torch.bfloat16)
    assert core.calls == [STREAM] and oracle.same_bits(
        values, oracle.gather(matrix, layout).bfloat16()
    )
    with pytest.raises(ValueError, match="index: expected a tensor on cpu"):
        OPS["gather_selected"].backends["cuda"](matrix, kind, layout[1].to("meta"), *layout[2:])


NO_IMAGE = "cudaErrorNoKernelImageForDevice, no kernel image is available for execution"


@pytest.fixture
def older_device(core, monkeypatch):
    """A GPU that this build has no image for; plain PyTorch stands in the place of Triton."""
    core.why_not = NO_IMAGE
    monkeypatch.setattr(_native, "CUDA", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    for name in ("gather_selected", "scatter_selected_", "swap_selected_", "masked_adamw_"):
        backend = OPS[name].backends["cuda"].__globals__["function"]
        reference = OPS[name].backends["reference"].__globals__["function"]
        monkeypatch.setitem(backend.__globals__, "otherwise", reference)
    return core


def test_a_device_that_the_kernels_do_not_run_on_is_served_all_the_same_and_told_once(older_device):
    problem, want = pair(weight_dtype=torch.bfloat16)
    matrix = torch.randn(9, 14)
    layout = oracle.layout("blocks", matrix.shape, "some", block=(4, 5))
    with pytest.warns(
        RuntimeWarning, match="on GPU 0, T4 of compute capability 7.5, .*NoKernel"
    ) as told:
        problem.step(masked_adamw_cuda_)
        values = OPS["gather_selected"].backends["cuda"](matrix, *layout)
        problem.step(masked_adamw_cuda_)
    assert len(told) == 1 and not older_device.calls
    assert oracle.same_bits(values, oracle.gather(matrix, layout))
    for _ in range(2):
        want.step(OPS["masked_adamw_"].backends["reference"])
    assert all(oracle.same_bits(a, b) for a, b in zip(problem.state, want.state))
    assert not _native.serves(torch.device("cuda", 0))


def test_the_diagnosis_says_why_the_kernels_do_not_run(older_device, monkeypatch):
    served = {"cpu": ("native", ""), "cuda": ("cuda", "compiled for sm_90"), "other": ("", "")}
    monkeypatch.setitem(ops.SERVED, "gather_selected", served)
    with pytest.warns(RuntimeWarning, match="CUDA kernels are compiled for"):
        by, why = sft.backends()["gather_selected"]["cuda"]
    assert by in ("triton", "reference") and NO_IMAGE in why and "T4" in why
    assert served["cuda"][0] == "cuda"
    older_device.why_not = ""
    _native.why_not_on.cache_clear()
    assert sft.backends()["gather_selected"]["cuda"] == served["cuda"]

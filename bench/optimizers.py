"""AdamW implementations as providers.

Each takes parameters that have gradients and returns a call that makes one step.
"""

import importlib
import os
import sys

import torch

from bench.machine import ROOT
from bench.suite import Unavailable

HYPER = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2)


def _module(name):
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a competitor that does not import is a row that says so
        raise Unavailable(
            f"{name} does not import here:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None


def torch_fused(parameters):
    """The kernel behind AdamW(fused=True), without the optimiser class around it."""
    grads, states = (
        [p.grad for p in parameters],
        [[torch.zeros_like(p) for p in parameters] for _ in range(2)],
    )
    steps = [torch.zeros(()) for _ in parameters]
    values = [p.detach() for p in parameters]

    def step():
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            values, grads, *states, [], steps, amsgrad=False, maximize=False, **HYPER
        )

    return step


def _optimizer(cls, parameters, **keywords):
    beta1, beta2 = HYPER["beta1"], HYPER["beta2"]
    made = cls(
        parameters,
        lr=HYPER["lr"],
        betas=(beta1, beta2),
        eps=HYPER["eps"],
        weight_decay=HYPER["weight_decay"],
        **keywords,
    )
    return made.step


def torch_foreach(parameters):
    return _optimizer(torch.optim.AdamW, parameters, foreach=True)


def deepspeed_cpu_adam(parameters):
    """Compiled by DeepSpeed at its first use; the build is kept under bench/out."""
    folder = ROOT / "bench" / "out" / "torch_extensions"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    # Its build looks for ninja there.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    # Left by a build that was killed, and waited for without end.
    for lock in folder.glob("*/lock"):
        lock.unlink()
    cls = _module("deepspeed.ops.adam").DeepSpeedCPUAdam
    try:
        return _optimizer(cls, parameters, adamw_mode=True)
    except Exception as error:  # noqa: BLE001
        raise Unavailable(
            f"DeepSpeed's CPU Adam does not build here: {str(error).splitlines()[0]}"
        ) from None


def bitsandbytes(name):
    def make(parameters):
        step = _optimizer(getattr(_module("bitsandbytes").optim, name), parameters)
        return _must_run("bitsandbytes", step)

    return make


def torchao(name):
    def make(parameters):
        module = _module("torchao.optim")
        torch._inductor.config.compile_threads = (
            1  # no pool of compilers left waiting beside the measurement
        )
        step = _optimizer(getattr(module, name), parameters)
        return _must_run("torchao", step)

    return make


def _must_run(package, step):
    try:
        step()
    except Exception as error:  # noqa: BLE001
        raise Unavailable(
            f"{package} does not run on this CPU: {str(error).splitlines()[0]}"
        ) from None
    return step


DENSE = {  # fp32 states unless the name says otherwise
    "torch fused": torch_fused,
    "torch foreach": torch_foreach,
    "DeepSpeedCPUAdam": deepspeed_cpu_adam,
    "bitsandbytes AdamW": bitsandbytes("AdamW"),
    "bitsandbytes AdamW8bit": bitsandbytes("AdamW8bit"),
    "torchao AdamW8bit": torchao("AdamW8bit"),
}

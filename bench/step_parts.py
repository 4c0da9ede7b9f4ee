"""Where a lean step's time goes, part by part, beside what each part would take at the machine's
own limits.
"""

from dataclasses import dataclass

from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.ceilings import Ceilings
from bench.training import Step

FLOAT = 4  # bytes
STEPS = 3  # profiled, after as many that are not
REST = "everything else"
# What torch's profiler calls the work of a part. Nodes of ours hold what they call: backward nodes
# of linear layers their dense product and the selected one.
EVENTS = {
    "dense and selected products": ("_LeanProduct", "aten::mm", "aten::addmm", "aten::linear"),
    "attention": ("scaled_dot_product", "_softmax", "aten::bmm", "aten::baddbmm"),
    "convolutions": ("convolution",),
    "activations": ("_Activation", "_GatedProduct", "_ReLU", "aten::gelu", "aten::silu"),
    "norms": ("native_layer_norm", "_RMSNorm", "_BatchNorm"),
    "optimiser": ("Optimizer.step",),
}


@dataclass(frozen=True)
class Part:
    """One part of a step. seconds: of one step. limit: what it would take at best, or None where
    nothing is said.
    """

    name: str
    seconds: float
    limit: float | None


def parts_of(step: Step, limits: dict[str, float]) -> list[Part]:
    """The parts of a training step of a lean model, largest first. limits: {part: seconds}."""
    spent = _profiled(step)
    found = [Part(name, seconds, limits.get(name)) for name, seconds in spent.items()]
    return sorted(found, key=lambda part: -part.seconds)


def limits_of(model: nn.Module, batch: int, tokens: int, ceilings: Ceilings) -> dict[str, float]:
    """{part: seconds} at the machine's GEMM rate or triad bandwidth, whichever the part
    is made of.
    """
    rows = batch * tokens
    flop = ceilings.gemm["float32"]
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    products = 2 * 2 * rows * sum(w.numel() for w in weights)  # forward, and gradient to the input
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    normed = rows * sum(m.weight.numel() for m in norms)
    widest = [max(w.shape) for w in weights if max(w.shape) > 2 * min(w.shape)]
    config = next(m.config for m in model.modules() if hasattr(m, "config"))
    # Two products a head forward, five back (both of the forward again, and three gradients).
    attention = (2 + 5) * 2 * rows * tokens * config.hidden_size * config.num_hidden_layers
    activated = rows * config.intermediate_size * config.num_hidden_layers
    gated = len(widest) > 2 * config.num_hidden_layers
    # Forward reads one tensor (gate and up: two) and writes one; backward reads one more and writes
    # one (two).
    streams = 3 + 5 if gated else 2 + 3
    return {
        "dense and selected products": products / flop,
        "attention": attention / flop,
        "activations": streams * activated * FLOAT / ceilings.triad,
        "norms": (2 + 3) * normed * FLOAT / ceilings.triad,
    }


def limits_of_convnet(step: Step, ceilings: Ceilings) -> dict[str, float]:
    """As `limits_of`, for a frozen net of convolutions: what its modules made is counted in
    one step.
    """
    made: list[tuple[nn.Module, int]] = []
    kinds = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
    found = [module for module in step.model.modules() if isinstance(module, kinds)]
    handles = [
        module.register_forward_hook(
            lambda module, _, output: made.append((module, output.numel()))
        )
        for module in found
    ]
    step()
    for handle in handles:
        handle.remove()

    def elements(kind: type[nn.Module]) -> int:
        return sum(count for module, count in made if isinstance(module, kind))

    # Forward, and gradient to the input: a multiplication a weight of the filter and output each.
    products = sum(
        2 * 2 * count * module.weight[0].numel()
        for module, count in made
        if isinstance(module, nn.Conv2d)
    )
    return {
        "convolutions": products / ceilings.gemm["float32"],
        "norms": (2 + 2) * elements(nn.BatchNorm2d) * FLOAT / ceilings.triad,
        # Back from one bit an element.
        "activations": (2 + 2) * elements(nn.ReLU) * FLOAT / ceilings.triad,
    }


def _profiled(step: Step) -> dict[str, float]:
    for _ in range(STEPS):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            step()
    spent = dict.fromkeys([*EVENTS, REST], 0.0)
    for event in profiled.key_averages():
        spent[_part_of(event.key)] += event.self_cpu_time_total / 1e6 / STEPS
    return spent


def _part_of(event: str) -> str:
    for part, names in EVENTS.items():
        if any(name in event for name in names):
            return part
    return REST

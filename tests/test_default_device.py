"""`torch.set_default_device` and `set_default_dtype` are for the user's own tensors.

With a default of "cuda" the library's small tables on the CPU, and what it draws by a generator of
the CPU, would land on the GPU, or raise. The meta device stands in for it: whatever lands there has
no numbers, so nothing here could work by chance.
"""

import ast
import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.llama import tiny_llama
from torch import nn

import sparse_ft as sft

ROOT = Path(__file__).resolve().parents[1]
FACTORIES = set(
    "arange as_tensor asarray empty eye full linspace ones rand randint randn randperm tensor"
    " zeros".split()
)
# What PEFT loads is made where the user wants it.
NOT_ASKED = {"sparse_ft/peft/slot.py"}


def factories_without_a_device(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not is_call or ast.unparse(node.func.value) != "torch":
            continue
        given = {keyword.arg for keyword in node.keywords}
        if node.func.attr in FACTORIES and not given & {"device", "out", None}:
            yield f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_every_tensor_that_the_library_makes_is_told_where():
    files = [*(ROOT / "sparse_ft").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert len(files) > 200
    files = [file for file in files if str(file.relative_to(ROOT)) not in NOT_ASKED]
    found = [each for file in files for each in factories_without_a_device(file)]
    assert not found, found


@contextlib.contextmanager
def another_default() -> Iterator[None]:
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def everything(folder: Path, untrained: nn.Module) -> list[torch.Tensor]:
    """A life of a model, its weights at each station."""
    seen: list[torch.Tensor] = []
    tokens = torch.arange(12, device="cpu").view(2, 6)
    batch = {"input_ids": tokens, "labels": tokens}

    def note(model: nn.Module) -> None:
        seen.extend(each.detach().clone() for each in sft.state_dict(model).values())

    def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        note(model)

    model, base = copy.deepcopy(untrained), copy.deepcopy(untrained)
    head = sft.units(base, batch)["heads"][0]
    seen.extend(torch.tensor(part.index, device="cpu") for part in head.parts)
    for score in ("gradient", "fisher", "magnitude", "random", "principal", "activation"):
        structure = "columns" if score == "activation" else "entries"
        among = {"scope": "global", "floor": 0.01, "cap": 0.5}
        plan = sft.select(base, density=0.1, structure=structure, score=score, batches=[batch],
                          **among)  # fmt: skip
        seen.extend(each.index for each in plan.values())
    plan = sft.recipes.get("shira")(model, density=0.1)
    plan.save(folder / "plan.safetensors")
    assert sft.Plan.load(folder / "plan.safetensors") == plan
    sft.convert(model, plan, lean=True, origin=True)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.01, decay_to="origin", optim_bits=8)
    trained(model, optimizer)
    candidates = sft.Candidates(model, 4)
    candidates.find([batch])
    model(**batch).loss.backward()
    candidates.step()
    seeds = candidates.seeds()
    candidates.remove()
    other = sft.select(model, density=0.1, structure="entries", score="random", seed=1)
    joined = {name: seed for name, seed in seeds.items() if other[name] != plan[name]}
    assert joined
    sft.reselect(model, optimizer, other)
    sft.scale_updates(model, {name: 0.5 for name in other})
    trained(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    trained(model, optimizer)
    for alpha in (0.5, 1.0):
        sft.restore(model, alpha)
        note(model)
    delta = sft.save_delta(model, folder / "delta.safetensors", origin=True)
    loaded = sft.load_delta(folder / "delta.safetensors")
    sft.apply(base, loaded, alpha=0.5)
    note(base)
    sft.remove(base)
    sft.apply(base, sft.merge([delta, loaded], "ties", density=0.5))
    note(base)
    sft.remove(base)
    sft.export_shira(delta, folder / "shira", base=base)
    note(sft.apply(base, sft.load_shira(folder / "shira", base)))
    sft.remove(base)
    receiver = sft.deltas.Receiver()
    receiver.apply(base, sft.patches(model))
    note(base)
    state = model.state_dict()
    again = copy.deepcopy(untrained)
    sft.load(again, state)
    note(sft.revert(again))
    estimated = sft.estimate(again, plan, inputs=batch)
    seen.append(torch.tensor(estimated.peak, device="cpu"))
    return seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_results_do_not_depend_on_it(tmp_path: Path):
    untrained = tiny_llama()
    (tmp_path / "here").mkdir()
    expected = everything(tmp_path / "here", untrained)
    (tmp_path / "there").mkdir()
    with another_default():
        found = everything(tmp_path / "there", untrained)
    assert len(found) == len(expected) > 100
    for number, (one, other) in enumerate(zip(found, expected)):
        assert one.device.type == "cpu" and torch.equal(one, other), number

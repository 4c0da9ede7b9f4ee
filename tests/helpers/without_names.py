"""Trains small models with torch as it is, then without each private name given as an argument.

Run as a script; prints {name: {what: result}} as JSON, "" for torch as it is. Each name has a
process of its own, forked where torch is imported and sparse_ft is not.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def bits(*tensors: torch.Tensor) -> list[str]:
    return [t.detach().double().numpy().tobytes().hex() for t in tensors]


def trained(sft) -> list[str]:
    """Two steps of two layers behind a lean norm, one of them read by its weight, too."""
    torch.manual_seed(0)
    model = nn.ModuleList(
        [nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(16, 8), nn.GELU(), nn.Dropout(0.5)]
    )
    columns = sft.Columns(torch.tensor([1, 5]))
    sft.convert(model, {"1.weight": columns, "2.weight": columns, "1.bias": "all"}, lean=True)
    norm, first, second, gelu, dropout = model
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)

    def forward(x):
        x = norm(x)
        return dropout(gelu(first(x))) + second(x) + F.linear(x, second.weight)

    given = torch.randn(3, 4, 16, requires_grad=True)
    for step in (forward, lambda x: checkpoint(forward, x, use_reentrant=False)):
        step(given).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return bits(*model.parameters(), given.grad, first.weight)


def convnet(sft) -> list[str]:
    """One step of frozen lean layers around a selected convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(8, 2, 3, stride=2),
    ).eval()
    sft.convert(model, {"3.weight": sft.Rows(torch.tensor([1, 5]))}, lean=True)
    given = torch.randn(2, 2, 8, 8, requires_grad=True)
    model(given).square().sum().backward()
    sft.SelectiveAdamW(model.parameters(), lr=0.1).step()
    return bits(*model.parameters(), given.grad)


def recurrent(sft) -> list[str]:
    torch.manual_seed(0)
    model = nn.LSTM(4, 4)
    sft.convert(model, {"weight_ih_l0": sft.Rows(torch.tensor([1]))})
    model(torch.randn(2, 3, 4))[0].square().sum().backward()
    return bits(*[p.grad for p in model.parameters() if p.grad is not None])


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 32, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, hidden, labels=None):
        return F.cross_entropy(self.head(hidden), labels)


def language_model(sft) -> float:
    torch.manual_seed(0)
    model = LanguageModel().train()
    sft.lean(model, loss=True)
    hidden = torch.randn(6, 8, requires_grad=True)
    loss = model(hidden, labels=torch.arange(6))
    loss.backward()
    return round(loss.item() + hidden.grad.abs().sum().item(), 4)


def transformed(sft) -> float:
    """torch.func would not train a selection: it must not run."""
    model = nn.Linear(4, 4)
    sft.convert(model, {"weight": sft.Columns(torch.tensor([1]))})
    return float(torch.func.grad(lambda x: model(x).sum())(torch.ones(4)).sum())


def forward_mode(sft) -> list[str]:
    """The derivative of a lean norm in forward mode."""
    model = nn.Sequential(nn.LayerNorm(4))
    sft.lean(model)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.arange(4.0), torch.ones(4))
        tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    return bits(tangent)


def estimated(sft) -> int:
    return sft.estimate(
        nn.Sequential(nn.Linear(16, 8), nn.ReLU()), inputs={"input": torch.ones(2, 16)}
    ).peak


def booked(sft) -> int:
    return sft.memory.ledger(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), torch.ones(2, 16)).total


WHAT = [trained, convnet, recurrent, language_model, transformed, forward_mode, estimated, booked]


def results(name: str) -> dict:
    os.environ["SPARSE_FT_WITHOUT"] = name
    import sparse_ft as sft

    found = {"missing": sft._torch.MISSING}
    for what in WHAT:
        try:
            found[what.__name__] = what(sft)
        except RuntimeError as error:
            found[what.__name__] = f"RuntimeError: {error}"
    return found


def imported(_: str) -> dict:
    """What the package imports besides itself: it takes most of the time, and is done once."""
    before = set(sys.modules)
    results("")
    return {
        "modules": sorted(
            name for name in set(sys.modules) - before if not name.startswith("sparse_ft")
        )
    }


def forked(work: Callable[[str], dict], name: str) -> dict:
    """`work(name)` in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = json.dumps(work(name))
        except BaseException:
            text = json.dumps({"died": traceback.format_exc()})
        with os.fdopen(writing, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Compiled once, by the first that imports the package, wherever bytecode goes otherwise.
    sys.dont_write_bytecode, bytecode = False, tempfile.TemporaryDirectory()
    sys.pycache_prefix = bytecode.name
    for module in forked(imported, "")["modules"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    print(json.dumps({name: forked(results, name) for name in ["", *sys.argv[1:]]}))
    bytecode.cleanup()

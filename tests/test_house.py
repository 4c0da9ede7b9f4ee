"""The house stands on what torch promises: private names are behind one door, and may be missing.

Which file may import which: `test_layering.py`, which also keeps every file below 400 lines.
"""

import ast
import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import house_figures

import sparse_ft
from sparse_ft import _torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparse_ft"
DOOR = PACKAGE / "_torch.py"

# Names with a leading underscore that are not ours, and may stand in every file.
ALLOWED = {
    # What torch documents for subclasses of nn.Module, and the tables that it shows them.
    "_apply",
    "_buffers",
    "_load_from_state_dict",
    "_modules",
    "_parameters",
    "_replicate_for_data_parallel",
    "_save_to_state_dict",
    # torch's notes on autograd explain it, and no public name tells of a write in place.
    "_version",
    # Of sys, which Python documents: nothing else tells what other threads are doing.
    "_current_frames",
    # Asked for with a default: a state_dict is a dictionary that may carry it.
    "_metadata",
    # Public names of namedtuple.
    "_asdict",
    "_fields",
    "_replace",
    # transformers'.
    "_apply_gate",
    "_attn_implementation",
    "_from_config",
    "_norm",
}
PRIVATE = re.compile(r"_[A-Za-z][A-Za-z0-9_]*")


def is_private(name: str) -> bool:
    """Whether a name is private, and not one that we put on other people's objects."""
    return PRIVATE.fullmatch(name) is not None and not name.startswith("_sparse_ft")


def own_names(tree: ast.AST) -> Iterator[str]:
    """Names that a source gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self.__dict__" and isinstance(node.slice, ast.Constant):
                yield node.slice.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.__dict__.update":
            yield from (keyword.arg for keyword in node.keywords)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from ast.literal_eval(node.value)


def names_of_torch(tree: ast.AST) -> set[str]:
    """What a source calls torch and what it imports from there."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    found.add(alias.asname or "torch")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def root_of(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_uses(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name of others: imported, read as an attribute, or a string."""
    torch_names = names_of_torch(tree)
    pieces = {
        piece for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            from_torch = isinstance(node, ast.ImportFrom) and not node.level
            module = node.module if from_torch else "torch"
            for alias in node.names:
                parts = f"{module}.{alias.name}".split(".")
                is_torch = from_torch or isinstance(node, ast.Import)
                if is_torch and "torch" in parts and any(map(is_private, parts)):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of_torch = root_of(node) in torch_names
            if node.attr not in ALLOWED and (of_torch or node.attr not in own):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
            name = node.value
            if is_private(name) and name not in ALLOWED | own:
                yield node.lineno, name


TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
OWN = {name for path, tree in TREES.items() if path != DOOR for name in own_names(tree)}


# The one place that adds a member to PEFT's closed enum of methods; the page says why.
ENUM = PACKAGE / "peft" / "registration.py"


@pytest.mark.parametrize("path", [path for path in TREES if path not in (DOOR, ENUM)], ids=str)
def test_private_torch_is_asked_for_behind_the_door_alone(path):
    found = [f"{path.name}:{line}: {name}" for line, name in private_uses(TREES[path], OWN)]
    assert not found, f"private names of others; move them to {DOOR.name}, with a fallback: {found}"


def test_behind_the_door_every_private_name_can_be_hidden():
    """None is read as an attribute there: all are strings that `_find` and `_named` see first."""
    tree = TREES[DOOR]
    read = [
        (node.lineno, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    ]
    assert not read
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asked = [
        ast.literal_eval(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in ("_find", "_find_class", "_named")
        and isinstance(call.args[0], ast.Constant)
    ]
    assert sorted(asked) == sorted(_torch.NAMES)
    last_parts = {name.split(".")[-1] for name in asked}
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value)
    }
    assert strings <= last_parts


@pytest.mark.parametrize(
    "text, name",
    [
        ("import torch\ntorch._C._thing()", "_thing"),
        ("import torch\ntorch._own", "_own"),
        ("from torch import nn\nnn.modules.conv._ConvNd", "_ConvNd"),
        ("from torch.utils import _pytree", "_pytree"),
        ("from torch._subclasses.fake_tensor import FakeTensor", "FakeTensor"),
        ("import torch._dynamo", "torch._dynamo"),
        ("x._base", "_base"),
        ("getattr(x, '_raw_saved_input', None)", "_raw_saved_input"),
        ("x.__dict__['_forward_hooks']", "_forward_hooks"),
    ],
)
def test_the_reader_of_private_names_sees_them(text, name):
    assert name in [found for _, found in private_uses(ast.parse(text), {"_own"})]


def test_the_reader_of_private_names_lets_ours_pass():
    text = "import torch\nself._own\nx._version\nmodule._parameters\nfrom ._torch import is_eager"
    assert not list(private_uses(ast.parse(text), {"_own"}))


# What cannot do without a name says which. Everything else gives the same numbers without it.
REFUSALS = {
    ("recurrent", "_flat_weights"): "keeps the weights of recurrent modules in a way that is not",
    ("recurrent", "_flat_weights_names"): "keeps the weights of recurrent modules in a way that is",
    ("transformed", "torch._C._are_functorch_transforms_active"): "",  # torch's own
}
REFUSALS |= {
    ("estimated", name): f"has no {name}"
    for name in _torch.NAMES
    if name.split(".")[-1].startswith("Fake")
    and not name.endswith("FakeTensor")
    or name.endswith(("unset_fake_temporarily", "TorchDispatchMode"))
}


def test_without_any_one_private_name_everything_imports_and_trains_alike():
    script = ROOT / "tests" / "helpers" / "without_names.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *_torch.NAMES],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["", *_torch.NAMES]
    usual = found.pop("")
    assert usual.pop("missing") == [name for name in _torch.MISSING], usual
    refused = [what for what, result in usual.items() if str(result).startswith("RuntimeError")]
    assert refused == ["transformed"]  # a selection does not train under torch.func
    for name, results in found.items():
        assert "died" not in results, f"without {name}:\n{results['died']}"
        assert results.pop("missing") == [name]
        for what, result in results.items():
            if (what, name) in REFUSALS:
                assert result.startswith("RuntimeError: ") and REFUSALS[what, name] in result
            else:
                assert result == usual[what], f"{what} differs without {name}: {result}"


def test_the_diagnosis_names_what_is_missing():
    script = "import sys\nfrom sparse_ft.module_command import main\nsys.exit(main([]))"
    environment = {**os.environ, "SPARSE_FT_WITHOUT": "torch.Tensor._is_view,_schema"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "private names of torch that are missing: torch.Tensor._is_view, _schema" in done.stdout


def test_no_room_shares_its_name_with_a_verb():
    """`sft.lean` is the function, whoever imported `sparse_ft.lean_modules` before."""
    for name, thing in public_functions():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{thing.__module__.rpartition('.')[0] or 'sparse_ft'}.{name}")


def public_functions() -> list[tuple[str, object]]:
    """What `sft` and `sft.memory` show that is called, ops aside: there one op is one page."""
    return [
        (name, thing)
        for room in (sparse_ft, sparse_ft.memory)
        for name in room.__all__
        if inspect.isfunction(thing := getattr(room, name))
    ]


def test_a_line_of_code_asks_little_of_its_reader():
    """As in stk (7.3 tokens a line), Liger (6.4) or torchao's optimisers (7.1)."""
    assert statistics.median(house_figures.density(PACKAGE)) <= 8


def test_what_a_user_may_pass_is_annotated():
    public = house_figures.annotated(PACKAGE)
    missing = [name for name, has in public.items() if not has]
    assert len(missing) <= 0.05 * len(public), missing


def test_tokens_are_counted_as_the_figure_says():
    lines = [
        '"""Not counted."""',
        "",
        "def add(a, b):  # def add ( a , b ) :",
        '    """Nor this,',
        "    nor that.",
        '    """',
        "    # nor this",
        "    return a + b",
    ]
    source = "\n".join(lines) + "\n"
    assert house_figures.tokens_a_line(source) == [8, 4]


def test_arguments_are_counted_as_the_figure_says():
    source = """
def shown(a: int, b, *, c: str = ""): ...
def _hidden(a): ...
class Public:
    def __init__(self, a): ...
    def method(self, *args: int, **kwargs):
        def inner(a): ...
    def _private(self, a): ...
class _Private:
    def method(self, a): ...
"""
    found = house_figures.arguments(source)
    assert sorted(name for name, has in found if has) == [
        "Public.method: args",
        "shown: a",
        "shown: c",
    ]
    assert sorted(name for name, has in found if not has) == [
        "Public.__init__: a",
        "Public.method: kwargs",
        "shown: b",
    ]


# What nobody could read, and what took its place.
GONE = {
    r"\bshown\[\d": "the fields of a `Stamp` have names",
    r"\binspect\.getsource\b": "modules are known by what they do, not by their text",
    r"map\(list, zip\(\*": "each setting is given by its name",
    r"\bclass Kept\b": "a `StateFormat` makes, reads and writes the state of the optimiser",
    r"\blast_copy\b|\(\)\.slope\b|deque\(maxlen=8\)": "`known` alone says what outputs are made of",
}


@pytest.mark.parametrize("passage", GONE)
def test_what_had_to_be_unpacked_in_the_head_is_gone(passage):
    for path in TREES:
        assert not re.search(passage, path.read_text()), f"{path.name}: {GONE[passage]}"

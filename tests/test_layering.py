"""The house keeps its order.

Imports run one way, kernels and native core stand alone, no file grows without end.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparse_ft"
FILES = {path.relative_to(ROOT).with_suffix(""): path for path in sorted(PACKAGE.rglob("*.py"))}

# Lower imports nothing higher. What is not named (convert, nn, optim, salience, plan, report, …) is
# in the middle.
LEVELS = {
    "_C": 0,
    "_build_info": 0,
    "kernels": 0,
    "_atomic": 0,
    "_tensorfile": 0,
    "_torch": 0,
    "adapters": 0,
    "annotations": 0,
    "double_backward": 0,
    "families": 0,
    "messages": 0,
    "texts": 0,
    "trees": 0,
    "ops": 1,
    "selection": 2,
    "structures": 2,
    "known": 0,
    "rebuild": 2,
    "matrices": 0,
    "matching": 2,
    "products": 2,
}
LEVELS |= {"linear_cross_entropy": 2, "token_losses": 2, "functional": 3, "experts": 3}
MIDDLE, TOP = 4, {"cli": 6, "module_command": 5, "__main__": 6, "": 7}
# Within the middle: who may import whom.
MAY = {
    "report": (),
    "plan": (),
    "ranks": (),
    "parallel": (),
    "nn": ("parallel",),
    "diagnosis": (),
    "reparametrised": ("nn",),
    "zeroth_order": (),
    "dp": ("nn", "reparametrised"),
    "lean_modules": ("nn", "parallel"),
    "carried": ("nn", "plan"),
    "quantised": ("nn",),
    "places": ("lean_modules", "nn", "parallel", "plan", "quantised"),
    "converted": ("lean_modules", "nn", "plan", "quantised", "reparametrised", "report"),
    "checkpoint": ("carried", "conversion", "converted", "nn", "report"),
    "conversion": (
        "carried",
        "converted",
        "lean_modules",
        "nn",
        "places",
        "plan",
        "quantised",
        "ranks",
        "reparametrised",
        "report",
    ),
    "merging_quantised": ("conversion", "converted", "quantised"),
    "restoring": ("converted", "nn"),
    "anchoring": ("deltas",),
    "capturing": ("nn",),
    "deltas": (
        "carried",
        "checkpoint",
        "converted",
        "nn",
        "places",
        "plan",
        "quantised",
        "reparametrised",
    ),
    "optim": ("nn", "parallel"),
    "scaling": ("converted", "nn"),
    "reselection": ("carried", "converted", "nn", "optim", "plan", "ranks"),
    "memory": (
        "conversion",
        "lean_modules",
        "nn",
        "optim",
        "places",
        "plan",
        "quantised",
        "ranks",
        "salience",
    ),
    "schedules": ("converted", "memory", "nn", "plan", "reselection", "salience"),
    "salience": (
        "converted",
        "lean_modules",
        "nn",
        "places",
        "plan",
        "quantised",
        "ranks",
        "units",
    ),
    "recipes": (
        "conversion",
        "converted",
        "nn",
        "optim",
        "places",
        "plan",
        "quantised",
        "reparametrised",
        "report",
        "reselection",
        "restoring",
        "salience",
        "scaling",
        "schedules",
        "units",
    ),
    "units": ("conversion", "converted", "lean_modules", "plan"),
    "trainers": ("carried", "conversion", "converted", "deltas", "optim", "plan", "salience"),
    "peft": ("conversion", "converted", "nn", "places", "plan", "recipes", "salience"),
}


def module_of(path):
    """Dotted name below sparse_ft of a file: "ops.layout".

    A package's __init__ counts as the package.
    """
    parts = path.parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(text, module, is_package):
    """Dotted names below sparse_ft that a source imports, anywhere in it.

    "" is the package itself.
    """
    home = module.split(".") if module else []
    here = home if is_package else home[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = [
                ".".join(["sparse_ft", *base, *filter(None, [node.module]), alias.name])
                for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "import_module",
            "find_spec",
        ):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.split(".")[0] == "sparse_ft"}
    return found


def room(dotted):
    """The first part of a dotted name: "ops" of "ops.layout.coordinates".

    "" for an attribute of the package itself.
    """
    first = dotted.split(".")[0]
    return first if first in ROOMS else ""


ROOMS = {module_of(path).split(".")[0] for path in FILES} | {"_C", "kernels", "_build_info"}


def level(name):
    return LEVELS.get(name, TOP.get(name, MIDDLE))


@pytest.mark.parametrize("name", [str(name) for name in FILES])
def test_imports_run_one_way(name):
    path = FILES[Path(name)]
    module, is_package = module_of(Path(name)), path.stem == "__init__"
    own = room(module)
    for dotted in imports(path.read_text(), module, is_package):
        other = room(dotted)
        if other == own or own == "" or dotted == "__version__":
            continue
        assert level(other) <= level(own), (
            f"{name} imports sparse_ft.{dotted}, which stands above it"
        )
        if own in MAY and level(other) == MIDDLE:
            assert other in MAY[own], (
                f"{name} imports sparse_ft.{dotted}; of its own level, {own} may import {MAY[own]}"
            )


def test_the_reader_of_imports_sees_them():
    text = (
        "import sparse_ft\nfrom . import a, b\nfrom .c import d\nfrom .. import e\nfrom ..f.g"
        " import h\ndef x():\n    from sparse_ft.i import j\n   "
        " importlib.import_module('sparse_ft.k')\nimport torch\n"
    )
    assert imports(text, "room.file", False) == {
        "",
        "room.a",
        "room.b",
        "room.c.d",
        "e",
        "f.g.h",
        "i.j",
        "k",
    }
    assert imports("from .x import y", "ops", True) == {"ops.x.y"}
    assert imports("from .ops import y", "", True) == {"ops.y"}


def test_the_files_are_found():
    assert {
        "selection",
        "functional",
        "conversion",
        "plan",
        "ops.layout",
        "nn.linear",
        "salience.ranking",
        "optim.selective_adamw",
    } <= {module_of(path) for path in FILES}


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "kernels").glob("*.py"))])
def test_kernels_know_nothing_of_sparse_ft(name):
    tree = ast.parse((ROOT / "kernels" / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"kernels/{name} reaches out of its folder"
            roots = set() if node.level else {node.module.split(".")[0]}
        else:
            continue
        assert not roots & {"sparse_ft", "kernels"}, f"kernels/{name} imports {roots}"


def sources(folder, *suffixes):
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]


@pytest.mark.parametrize(
    "path",
    sources("csrc", ".cpp", ".h", ".cu", ".cuh"),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_native_core_knows_neither_torch_nor_the_package(path):
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("#"):
            included = line.partition("include")[2].strip()
            assert not any(word in included for word in ("torch", "ATen", "c10")), (
                f"{path.name}: {line}"
            )
            assert "Python.h" not in included and (
                "pybind11" not in included or path.name in ("bindings.cpp", "from_python.h")
            ), f"{path.name}: {line}"


SOURCES = [
    path
    for folder in ("sparse_ft", "kernels", "csrc", "bench", "demo", "docs", "tests")
    for path in sources(folder, ".py", ".cpp", ".h", ".cu", ".cuh")
]


def test_no_file_is_longer_than_400_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := path.read_text().count("\n")) > 400
    }
    assert not long


def roots(path):
    """The first parts of the names that a file imports by their full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_no_source_imports_the_tests_the_bench_or_the_demo():
    for path in FILES.values():
        assert not roots(path) & {"tests", "bench", "demo", "oracle", "kernels"}, path


def test_the_demo_imports_the_bench_which_imports_nothing_of_it():
    """But for the table of methods, which trains the demo's model on the demo's data."""
    for path in sources("bench", ".py"):
        assert not roots(path) & {"tests"}, path
        assert path.parent.name == "methods" or "demo" not in roots(path), path
    assert "bench" in set().union(*map(roots, sources("demo", ".py")))

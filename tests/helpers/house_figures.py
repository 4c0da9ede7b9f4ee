"""How much the code asks of its reader: `python tests/helpers/house_figures.py [PATH ...]`.

Tokens are counted on each line that has any: no comments, no docstrings, no blank lines, and none
of the tokens that only say where a line ends or how far it is indented. Of arguments, those of
public functions and methods count, without self and cls.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
LONG = 30  # tokens of a line that is hard to read


def docstring_lines(source: str) -> set[int]:
    """The lines that docstrings stand on."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def tokens_a_line(source: str) -> list[int]:
    """How many tokens begin on each code line of a Python file."""
    skipped = docstring_lines(source)
    counts: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type not in LAYOUT and line not in skipped:
            counts[line] = counts.get(line, 0) + 1
    return list(counts.values())


def python_files(*paths: Path) -> list[Path]:
    """The Python files that are named, or lie below a folder that is."""
    found = []
    for path in paths:
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def density(*paths: Path) -> list[int]:
    """Tokens of every code line of these files and folders."""
    return [
        count
        for file in python_files(*paths)
        for count in tokens_a_line(file.read_text(encoding="utf-8"))
    ]


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(name with those of the classes around it, definition) of what a file defines, methods too.

    Functions inside of functions are nobody's to call, and left out.
    """
    stack: list[tuple[str, ast.stmt]] = [("", node) for node in ast.parse(source).body]
    while stack:
        around, node = stack.pop()
        if isinstance(node, ast.FunctionDef):
            yield around + node.name, node
        elif isinstance(node, ast.ClassDef):
            stack += [(f"{around}{node.name}.", part) for part in node.body]
        elif isinstance(node, ast.If):
            stack += [(around, part) for part in (*node.body, *node.orelse)]


def is_public(name: str) -> bool:
    """Whether no part of a dotted name is private; `__init__` and its like are not."""
    return all(not part.startswith("_") or part.endswith("__") for part in name.split("."))


def arguments(source: str) -> list[tuple[str, bool]]:
    """("function: argument", whether it is annotated) of the public functions of a file."""
    found = []
    for name, function in functions(source):
        signature = function.args
        given = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
        given += [one for one in (signature.vararg, signature.kwarg) if one is not None]
        for argument in given if is_public(name) else ():
            if argument.arg not in ("self", "cls"):
                found.append((f"{name}: {argument.arg}", argument.annotation is not None))
    return found


def annotated(*paths: Path) -> dict[str, bool]:
    """{"file: function: argument": whether it is annotated} of these files and folders."""
    return {
        f"{file.relative_to(ROOT)}: {name}": has
        for file in python_files(*paths)
        for name, has in arguments(file.read_text(encoding="utf-8"))
    }


def summary(*paths: Path) -> str:
    counts, public = density(*paths), annotated(*paths).values()
    median, mean = statistics.median(counts), statistics.mean(counts)
    long = sum(count >= LONG for count in counts) / len(counts)
    share = sum(public) / len(public) if public else 1.0
    return (
        f"{len(counts):6d} lines, tokens a line: median {median:4.1f}, mean {mean:4.1f}, "
        f"{LONG} or more on {long:.1%}; {share:6.1%} of {len(public)} arguments annotated"
    )


def main(names: list[str]) -> None:
    for name in names or ["sparse_ft", "kernels", "bench", "demo", "tests"]:
        print(f"{name:30s} {summary(ROOT / name)}")


if __name__ == "__main__":
    main(sys.argv[1:])

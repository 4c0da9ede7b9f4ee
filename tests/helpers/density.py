"""How much a line of code asks of its reader: `python tests/helpers/density.py [PATH ...]`.

Counted are the tokens of each line that has any: no comments, no docstrings, no blank lines, and
none of the tokens that only say where a line ends or how far it is indented.
"""

import ast
import io
import statistics
import sys
import tokenize
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


def summary(counts: list[int]) -> str:
    median, mean = statistics.median(counts), statistics.mean(counts)
    long = sum(count >= LONG for count in counts) / len(counts)
    return f"{len(counts):6d} lines, median {median:4.1f}, mean {mean:4.1f}, {long:.1%} of {LONG}+"


def main(arguments: list[str]) -> None:
    for name in arguments or ["sparse_ft", "kernels", "bench", "demo", "tests"]:
        print(f"{name:30s} {summary(density(ROOT / name))}")


if __name__ == "__main__":
    main(sys.argv[1:])

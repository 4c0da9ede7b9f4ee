"""The parts of pages that are made: of the registry of recipes, of committed measurements, and of
the command line.
"""

import ast
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
MIB = 2**20
Row = dict[str, str]


def made(what: str) -> str:
    """The Markdown of `<!-- what -->`."""
    name, _, arguments = what.partition(": ")
    return MAKERS[name](*arguments.split())


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads that begin with ">" are of numbers, aligned to the right."""
    lines = [
        _line(head.removeprefix(">") for head in heads),
        _line("---:" if head.startswith(">") else "---" for head in heads),
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def read(name: str) -> list[Row]:
    """The rows of a file in bench/results."""
    with open(RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def recipes() -> str:
    """A section a recipe, below a table of all."""
    import sparse_ft as sft

    every = sft.recipes.list()
    table = markdown(
        ("recipe", "what trains", "paper"),
        [(f"[`{each.name}`](#{each.name})", each.says, each.paper) for each in every],
    )
    sections = [_recipe(each) for each in every]
    return "\n\n".join([f"{len(every)} recipes.", table, "## One by one", *sections])


def _recipe(each: "sft.recipes.Recipe") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Its page; the text of its docstring stays as it is."""
    return f"### {each.name}\n\n````text\n{each.page.strip()}\n````"


def facts() -> str:
    """What the demo measured, a line a method, with the command of each."""
    commands = {"demo.csv": "`make demo`", "demo-all.csv": '`make demo ARGS="--methods all"`'}
    here = [(row, commands["demo.csv"]) for row in read("demo.csv")]
    known = {row["label"] for row, _ in here}
    rest = [(row, commands["demo-all.csv"]) for row in read("demo-all.csv")]
    more = [(row, command) for row, command in rest if row["label"] not in known]
    return markdown(
        ("method", ">accuracy", ">trains", ">peak, MiB", ">s a step", ">rate", "by"),
        [_fact(row, command) for row, command in [*here, *more]],
    )


def _fact(row: Row, command: str) -> tuple[str, ...]:
    share = int(row["trainable"]) / int(row["total"])
    return (
        row["label"],
        f"{float(row['accuracy']):.1%}",
        f"{share:.2%}",
        f"{float(row['peak_bytes']) / MIB:.0f}",
        f"{float(row['seconds_per_step']):.2f}",
        f"{float(row['lr']):g}",
        command,
    )


def rates() -> str:
    """What each method reached with each rate: of demo/methods.py, by `python -m demo --tune`."""
    rows = []
    for method, (chosen, tried) in learning_rates()["reviews"].items():
        told = [f"{rate:g}: {accuracy:.1%}" for rate, accuracy in tried.items()]
        rows.append((method, f"{chosen:g}", ", ".join(told), "`python -m demo --tune`"))
    return markdown(("method", ">chosen", "tried", "by"), rows)


def learning_rates() -> dict[str, dict[str, tuple[float, dict[float, float]]]]:
    """`LEARNING_RATES` of demo/methods.py, read and not imported: the demo needs more than the
    site does.
    """
    for each in ast.parse((ROOT / "demo" / "methods.py").read_text()).body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "LEARNING_RATES":
            return ast.literal_eval(each.value)
    raise ValueError("demo/methods.py has no LEARNING_RATES")


def promises(*ops: str) -> str:
    """What was measured of these ops, a table a machine."""
    parts = []
    for path in sorted(RESULTS.glob("*.promises.csv")):
        rows = [row for row in read(path.name) if row["op"] in ops]
        if rows:
            parts += [f"{rows[0]['machine']}; `make bench`:", _promises(rows)]
    return "\n\n".join(parts)


def _promises(rows: list[Row]) -> str:
    """A line a promise, with what one and two threads measured."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        number = (
            f"{float(row['measured']):.3g}" if row["measured"] else row["note"] or "not measured"
        )
        lines.setdefault(row["line"], {})[row["threads"]] = number
    threads = sorted({row["threads"] for row in rows})
    heads = ("what", *(f">{each} thread{'s' if each != '1' else ''}" for each in threads))
    return markdown(heads, [(line, *(found.get(each, "") for each in threads))
                            for line, found in lines.items()])  # fmt: skip


def options() -> str:
    """A table a subcommand of `sparse-ft`: its arguments and options, as its --help has them."""
    from typer.main import get_command

    from sparse_ft.cli.main import app

    parts = []
    for name, command in _subcommands(get_command(app)):
        rows = [_option(each) for each in command.params if each.name != "help"]
        said = command.help.split("\n\n")[0].replace("\n", " ")
        table = markdown(("", "what it is", "default"), rows)
        parts.append(f"### sparse-ft {name}\n\n{said}\n\n{table}")
    return "\n\n".join(parts)


def _subcommands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(name, command) of each that does something."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _subcommands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def _option(each: Any) -> tuple[str, str, str]:
    """Its names, what it is, what it is without it."""
    if each.param_type_name == "argument":
        return f"`{each.metavar or each.name.upper()}`", each.help or "", ""
    names = [*each.opts, *each.secondary_opts]
    is_told = each.default is not None and each.default is not False
    default = f"`{each.default}`" if is_told else ""
    return (
        ", ".join(f"`{name}`" for name in names),
        each.help,
        "needed" if each.required else default,
    )


def keys() -> str:
    """What a config may say."""
    from sparse_ft.cli.keys import keys

    return markdown(
        ("key", "default", "what it is"),
        [(f"`{key}`", f"`{default}`", meaning) for key, default, meaning in keys()],
    )


def exits() -> str:
    """What the shell gets."""
    from sparse_ft.cli.misuse import EXITS

    return markdown((">code", "when"), [(str(code), when) for code, when in EXITS.items()])


MAKERS: dict[str, Callable[..., str]] = {
    "recipes": recipes,
    "facts": facts,
    "rates": rates,
    "options": options,
    "keys": keys,
    "exits": exits,
    "promises": promises,
}

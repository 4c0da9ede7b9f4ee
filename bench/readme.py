"""The generated parts of bench/README.md: between `<!-- name -->` and `<!-- end name -->`, from the
machine's csv files.
"""

import re

from bench import table
from bench.predictions import EXPECTED


def fill(text, sections):
    """`text` with what stands between the marks of each section replaced.

    sections: {name: Markdown}.
    """
    for name, body in sections.items():
        marks = f"<!-- {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.S)
        if not pattern.search(text):
            raise ValueError(f"text: the marks of section {name!r} are missing")
        text = pattern.sub(
            lambda _, body=body, marks=marks: f"{marks[0]}\n\n{body}\n\n{marks[1]}", text
        )
    return text


def sections(records, musts, stamps):
    """{name: Markdown} of what has been measured: expected, breakdown, host."""
    found = {}
    if musts:
        found["expected"] = expected(musts)
    for name, op in (("breakdown", "breakdown"), ("host", "linear")):
        rows = [r for r in records if r.op == op]
        if rows:
            threads = (
                max(r.threads for r in rows) if op == "breakdown" else min(r.threads for r in rows)
            )
            count = f"{threads} thread{'s' if threads > 1 else ''}"
            found[name] = f"{stamps[op]['machine']}; {count}\n\n{table.of_op(rows, threads)}"
    return found


def expected(musts):
    """A row a promise: target, what was expected, what one and two threads measured."""
    threads = sorted({m.threads for m in musts})
    rows = []
    for op, key in dict.fromkeys((m.op, m.key) for m in musts):
        by_threads = {m.threads: m for m in musts if (m.op, m.key) == (op, key)}
        must = next(iter(by_threads.values()))
        measured = [_verdict(by_threads[n]) if n in by_threads else "" for n in threads]
        rows.append(
            [
                f"{op}: {must.line}",
                f"{'≥' if must.at_least else '≤'} {must.target:g}",
                table.number(EXPECTED.get(op, {}).get(key)),
                *measured,
            ]
        )
    return table.markdown(
        ["promise", "target", "expected", *(f"{n} thread{'s' if n > 1 else ''}" for n in threads)],
        rows,
    )


def _verdict(must):
    return (
        f"{table.number(must.measured)} {'' if must.met else 'falls short'}".strip()
        if must.measured is not None
        else "not measured"
    )

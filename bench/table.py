"""Markdown: the times of one op, and the lines of what it promises."""


def markdown(headings, rows):
    """An aligned Markdown table; the first column to the left, the others to the right."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]

    def line(texts):
        return (
            "| "
            + " | ".join(
                [texts[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(texts[1:], widths[1:]))]
            )
            + " |"
        )

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def number(value):
    """Three significant digits, without an exponent where people read it easily."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def of_op(records, threads):
    """The tables of one op at one thread count.

    Cases named "about: what" stand side by side, the others one a row.
    """
    records = [r for r in records if r.threads == threads and r.case != "ceilings"]
    plain = [r for r in records if ": " not in r.case]
    tables = [timings(plain)] if plain else []
    for about in dict.fromkeys(r.case.partition(": ")[0] for r in records if ": " in r.case):
        tables.append(side_by_side(about, [r for r in records if r.case.startswith(f"{about}: ")]))
    return "\n\n".join(tables)


def timings(records):
    rows = []
    for r in records:
        figures = [number(n) for n in (r.p20, r.p50, r.p80, r.ratio)]
        reached = (
            f"{100 * r.bound / r.p50:.0f} %" if r.bound and r.p50 and r.provider == "ours" else ""
        )
        rounds = f"{r.rounds}, {r.disturbed} disturbed" if r.disturbed else r.rounds or ""
        rows.append([r.case, r.provider, *figures, reached, rounds, r.note])
    return markdown(
        [
            "case",
            "provider",
            "p20 ms",
            "p50 ms",
            "p80 ms",
            "time / ours",
            "of roofline",
            "rounds",
            "note",
        ],
        rows,
    )


def side_by_side(about, records):
    """Medians, a row a provider and a column a case."""
    columns = list(dict.fromkeys(r.case.partition(": ")[2] for r in records))
    cells = {(r.provider, r.case.partition(": ")[2]): number(r.p50) for r in records}
    rows = [
        [provider, *(cells.get((provider, column), "") for column in columns)]
        for provider in dict.fromkeys(r.provider for r in records)
    ]
    return markdown([f"{about}, {records[0].unit}", *columns], rows)


# share of the fastest GEMM that the slowest op of a run has on a machine that nobody else slows
# down
STEADY = 0.9


def unsteadiness(records):
    """A line for each thread count at which the machine's own GEMM rate changed from op to op of
    one run.
    """
    lines = []
    for threads in sorted({r.threads for r in records}):
        rates = [
            r.p50
            for r in records
            if (r.threads, r.case, r.provider) == (threads, "ceilings", "GEMM float32")
        ]
        if rates and min(rates) < STEADY * max(rates):
            plural = "s" if threads > 1 else ""
            lines.append(
                f"not a quiet machine: on {threads} thread{plural} its fp32 GEMM went from"
                f" {number(min(rates))} to {number(max(rates))} GFLOP/s between ops; repeat what"
                " falls short"
            )
    return lines


def ceilings(records, threads):
    """One line: the ceilings of the run."""
    mine = [r for r in records if r.threads == threads and r.case == "ceilings"]
    found = [
        f"{r.provider} {number(r.p50)} {r.unit}" + (f" ({r.note})" if r.note else "") for r in mine
    ]
    return "Ceilings of this run: " + ", ".join(found)


def musts(rows):
    """The promises as a table, in the order given."""
    cells = [
        [
            m.line,
            m.threads,
            number(m.measured) if m.measured is not None else "-",
            f"{'≥' if m.at_least else '≤'} {m.target:g}",
            m.verdict,
            "; ".join(filter(None, (m.unmeasured, m.note))),
        ]
        for m in rows
    ]
    return markdown(["promise", "threads", "measured", "target", "", "note"], cells)


def document(op, records, promised, stamp):
    """The Markdown of one op: machine line, tables of each thread count, promises."""
    parts = [f"## {op}", f"{stamp['machine']}"]
    for threads in sorted({r.threads for r in records}):
        parts += [f"### {threads} thread{'s' if threads > 1 else ''}", of_op(records, threads)]
        if any(r.case == "ceilings" for r in records):
            parts.append(ceilings(records, threads))
    if promised:
        parts += ["### Promises", musts(promised)]
    return "\n\n".join(parts) + "\n"

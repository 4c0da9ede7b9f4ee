"""Markdown: the times of one op, and the lines of what it promises."""


def markdown(headings, rows):
    """An aligned Markdown table; the first column to the left, the others to the right."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]

    def line(texts):
        return "| " + " | ".join([texts[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(texts[1:], widths[1:]))]) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def number(value):
    """Three significant digits, without an exponent where people read it easily."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def of_op(records, threads):
    """The table of one op at one thread count: a row a case and provider, times in ms, ratios to ours."""
    rows = []
    for r in records:
        if r.threads != threads or r.case == "ceilings":
            continue
        if r.p50 is None:
            rows.append([r.case, r.provider, "", "", "", "", "", r.note])
            continue
        reached = f"{100 * r.bound / r.p50:.0f} %" if r.bound and r.provider == "ours" else ""
        note = r.note or ("" if r.unit == "ms" else r.unit)
        rows.append([r.case, r.provider, number(r.p20), number(r.p50), number(r.p80), number(r.ratio), reached, note])
    return markdown(["case", "provider", "p20 ms", "p50 ms", "p80 ms", "time / ours", "of roofline", "note"], rows)


def ceilings(records, threads):
    """One line: the ceilings of the run."""
    found = [f"{r.provider} {number(r.p50)} {r.unit}" for r in records if r.threads == threads and r.case == "ceilings"]
    return "Ceilings of this run: " + ", ".join(found)


def musts(rows):
    """The promises as a table, in the order given."""
    cells = [[m.line, m.threads, number(m.measured) if m.measured is not None else "not measured",
              f"{'≥' if m.at_least else '≤'} {m.target:g}", "pass" if m.met else "FALLS SHORT", m.note] for m in rows]
    return markdown(["promise", "threads", "measured", "target", "", "note"], cells)


def document(op, records, promised, stamp):
    """The Markdown of one op: machine line, tables of each thread count, promises, plot."""
    parts = [f"## {op}", f"{stamp['machine']}"]
    for threads in sorted({r.threads for r in records}):
        parts += [f"### {threads} thread{'s' if threads > 1 else ''}", of_op(records, threads)]
        if any(r.case == "ceilings" for r in records):
            parts.append(ceilings(records, threads))
    if promised:
        parts += ["### Promises", musts(promised)]
    return "\n\n".join(parts) + "\n"

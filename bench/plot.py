"""`python -m bench plot`: pictures of a csv file of results, one an op and thread count.

Time over density for each kind, crossovers with ours marked, the roofline drawn in.
"""

import argparse
from pathlib import Path

from bench import machine
from bench.records import Record, read
from bench.stats import crossovers
from bench.suite import OURS

INK, GRID, OUR_COLOUR, ROOF = "#1f2933", "#e4e8ec", "#0f8b8d", "#d9822b"
OTHERS = ("#6b7785", "#8f5aa8", "#3b6fb6", "#b5523b", "#7a8b3a", "#444444")


def draw(path, op, records, threads):
    """Write the density sweeps of `records` at one thread count to path (png).

    None where no kind has two densities.
    """
    sweeps = _sweeps(
        [
            r
            for r in records
            if r.threads == threads
            and r.p50 is not None
            and r.density
            and r.kind
            and r.unit == "ms"
        ]
    )
    if not sweeps:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    others = list(
        dict.fromkeys(
            name for by_provider in sweeps.values() for name in by_provider if name != OURS
        )
    )
    # One provider, one colour in every panel.
    colours = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    figure, axes = plt.subplots(
        1, len(sweeps), figsize=(4.2 * len(sweeps), 4.1), sharey=True, squeeze=False
    )
    for axis, (title, by_provider) in zip(axes[0], sweeps.items()):
        _panel(axis, title, by_provider, colours)
    axes[0][0].set_ylabel("ms, median", color=INK)
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=min(6, len(handles)),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(
        f"{op}, {threads} thread{'s' if threads > 1 else ''}",
        x=0.01,
        ha="left",
        fontweight="bold",
        color=INK,
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return path


def _sweeps(records):
    """{"kind dtype": {provider: [record by density]}} of what was measured at two densities or
    more.
    """
    found = {}
    for r in sorted(records, key=lambda r: r.density):
        if "," not in r.case:  # cases of real models have other shapes
            found.setdefault(f"{r.kind} {r.dtype}", {}).setdefault(r.provider, []).append(r)
    return {
        title: by
        for title, by in found.items()
        if len({r.density for rs in by.values() for r in rs}) > 1
    }


def _panel(axis, title, by_provider, colours):
    for provider, rows in by_provider.items():
        ours = provider == OURS
        colour = OUR_COLOUR if ours else colours[provider]
        densities, times = [100 * r.density for r in rows], [r.p50 for r in rows]
        axis.plot(
            densities,
            times,
            marker="o",
            ms=4,
            lw=2.4 if ours else 1.2,
            color=colour,
            label=provider,
            zorder=3 if ours else 2,
        )
        if not ours:
            for place in crossovers([r.density for r in rows], [r.ratio for r in rows]):
                axis.axvline(100 * place, color=colour, lw=0.8, ls=":")
                axis.annotate(
                    f"{100 * place:.3g} %",
                    (100 * place, 0.98),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    fontsize=8,
                    va="top",
                    ha="right",
                    color=colour,
                )
        elif all(r.bound for r in rows):
            axis.plot(
                densities, [r.bound for r in rows], color=ROOF, ls="--", lw=1.2, label="roofline"
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("density, %", color=INK)
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.grid(color=GRID)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def parser():
    parse = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__)
    folder = machine.ROOT / "bench"
    table = folder / "results" / f"{machine.name()}.csv"
    add = parse.add_argument
    add("csv", nargs="?", type=Path, default=table, help="results (default: this machine's)")
    add("--op", help="comma-separated (default: all)")
    add("--out", type=Path, default=folder / "out", help="folder (default: %(default)s)")
    return parse


def main(arguments=None):
    """Draw what the arguments name; the exit status is 1 where there is nothing to draw."""
    args = parser().parse_args(arguments)
    records = read(args.csv, Record)
    measured = sorted({(r.op, r.threads) for r in records})
    wanted = args.op.split(",") if args.op else {op for op, _ in measured}
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for op, threads in measured:
        if op in wanted:
            path = args.out / f"{args.csv.stem}-{op}-{threads}.png"
            rows = [r for r in records if r.op == op]
            drawn.append(draw(path, op, rows, threads))
    for path in filter(None, drawn):
        print(f"wrote {path}")
    if not any(drawn):
        print(f"nothing to draw: {args.csv} has no op with a case at two densities")
    return int(not any(drawn))

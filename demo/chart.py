"""demo.png: memory and time side by side, one bar a method, accuracy beside the name."""

MIB = 2**20
INK, MUTED, GRID, ACCENT = "#1f2933", "#6b7785", "#e4e8ec", "#d9822b"
BASELINE, OURS = "#a9b4c0", "#0f8b8d"


def _bars(axis, rows, values, text, title, limit):
    """One panel; a figure stands inside the end of its bar, or right of a bar too short for it."""
    colours = [OURS if row["kind"] == "ours" else BASELINE for row in rows]
    axis.barh(range(len(rows)), values, color=colours, height=0.62, zorder=2)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        inside = value > 0.15 * limit
        colour = "white" if inside and row["kind"] == "ours" else INK
        end = value + (-0.012 if inside else 0.012) * limit
        axis.text(
            end,
            place,
            text(value),
            va="center",
            ha="right" if inside else "left",
            fontsize=10.5,
            color=colour,
        )
    axis.set_xlim(0, 1.06 * limit)
    axis.set_title(title, loc="left", fontsize=11.5, color=INK, pad=8)
    axis.grid(axis="x", color=GRID, zorder=0)
    axis.tick_params(axis="x", colors=MUTED, labelsize=9, length=0)
    axis.tick_params(axis="y", length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _marks(axis, rows, limit):
    """The peak while ours chose what to train, with its figure where it stands clear of the bar.

    True if any.
    """
    marks = [
        (row["choosing_peak_bytes"] / MIB, row, place)
        for place, row in enumerate(rows)
        if row["kind"] == "ours"
    ]
    for peak, row, place in marks:
        axis.plot(peak, place, "|", color=ACCENT, markersize=17, markeredgewidth=2, zorder=3)
        if peak > row["peak_bytes"] / MIB:
            axis.text(
                peak + 0.012 * limit,
                place,
                f"{peak:.0f}",
                va="center",
                ha="left",
                fontsize=9.5,
                color=ACCENT,
            )
    return bool(marks)


def _name(row):
    share = 100 * row["trainable"] / row["total"]
    return (
        f"{row['label']}\n{100 * row['accuracy']:.1f} % right, {share:.{2 if share > 0.01 else 4}f}"
        " % trained"
    )


def draw(path, title, rows):
    """Write the chart of the rows to path (png)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    height = 1.9 + 0.5 * len(rows)
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(12.5, height), sharey=True)
    peaks, times = (
        [row["peak_bytes"] / MIB for row in rows],
        [row["seconds_per_step"] for row in rows],
    )
    widest = max([*peaks, *(row["choosing_peak_bytes"] / MIB for row in rows)]) or 1
    _bars(memory, rows, peaks, "{:.0f}".format, "Peak memory above the model, MiB", widest)
    _bars(
        seconds, rows, times, "{:.2f}".format, "Time of one training step, s (median)", max(times)
    )
    memory.set_ylim(len(rows) - 0.5, -0.5)
    memory.set_yticks(
        range(len(rows)), [_name(row) for row in rows], fontsize=9.5, color=INK, linespacing=1.35
    )
    top = {"ha": "left", "va": "top", "fontsize": 13.5, "fontweight": "bold", "color": INK}
    figure.suptitle(title, x=0.012, y=1 - 0.18 / height, **top)
    handles = [Patch(color=OURS, label="sparse_ft"), Patch(color=BASELINE, label="baselines")]
    if _marks(memory, rows, widest):
        handles.append(
            Line2D(
                [], [], marker="|", color=ACCENT, ls="", ms=12, mew=2, label="while choosing, once"
            )
        )
    corner = (0.995, 1 - 0.1 / height)
    figure.legend(
        handles=handles,
        loc="upper right",
        ncols=3,
        frameon=False,
        fontsize=10,
        bbox_to_anchor=corner,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height), w_pad=2.5)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)
    return path

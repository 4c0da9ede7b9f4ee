"""demo.png: memory and time side by side, one bar a method, accuracy beside the name."""

MIB = 2**20
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
BASELINE, OURS = "#a9b4c0", "#0f8b8d"


def _bars(axis, rows, values, text, title):
    colours = [OURS if row["kind"] == "ours" else BASELINE for row in rows]
    axis.barh(range(len(rows)), values, color=colours, height=0.62, zorder=2)
    limit = max(values) or 1
    for place, value in enumerate(values):
        axis.text(value + 0.015 * limit, place, text(value), va="center", ha="left", fontsize=10, color=INK)
    axis.set_xlim(0, 1.16 * limit)
    axis.set_title(title, loc="left", fontsize=11.5, color=INK, pad=10)
    axis.grid(axis="x", color=GRID, zorder=0)
    axis.tick_params(axis="x", colors=MUTED, labelsize=9, length=0)
    axis.tick_params(axis="y", length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _name(row):
    share = 100 * row["trainable"] / row["total"]
    return f"{row['label']}\n{100 * row['accuracy']:.1f} % right, {share:.3g} % trained"


def draw(path, title, rows):
    """Write the chart of the rows to path (png)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    height = 1.9 + 0.5 * len(rows)
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(12.5, height), sharey=True)
    peaks, times = [row["peak_bytes"] / MIB for row in rows], [row["seconds_per_step"] for row in rows]
    _bars(memory, rows, peaks, "{:.0f}".format, "Peak memory above the model, MiB")
    _bars(seconds, rows, times, "{:.2f}".format, "Time of one training step, s (median)")
    memory.set_ylim(len(rows) - 0.5, -0.5)
    memory.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=9.5, color=INK, linespacing=1.35)
    top = {"ha": "left", "va": "top", "fontsize": 13.5, "fontweight": "bold", "color": INK}
    figure.suptitle(title, x=0.012, y=1 - 0.18 / height, **top)
    handles = [Patch(color=OURS, label="sparse_ft"), Patch(color=BASELINE, label="baselines")]
    corner = (0.995, 1 - 0.1 / height)
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=10, bbox_to_anchor=corner)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / height), w_pad=2.5)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)
    return path

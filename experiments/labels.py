"""Names beside the ends of lines, instead of a legend: what several pictures share."""
import numpy as np


def name_ends(ax, ends, gap=0.055, room=0.45):
    """ends: (x, y, name, colour) of each line, on axes with their final limits in y. The names are pushed apart so that
    none lies on another; `gap` and `room` are shares of the height and of the width that is added for them."""
    left, right = ax.get_xlim()                         # settles the limits, which the transforms depend on
    across, along = ax.transData, ax.transData.inverted()
    last = max(x for x, _, _, _ in ends)
    scale = np.log if ax.get_xscale() == "log" else np.asarray
    back = np.exp if ax.get_xscale() == "log" else np.asarray
    ax.set_xlim(left, float(back(scale(last) + room * (scale(last) - scale(left)))))
    bottom, top = across.transform([(last, y) for y in ax.get_ylim()])[:, 1]
    step = gap * (top - bottom)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [across.transform((x, y))[1] for x, y, _, _ in ends]
    for _ in range(200):                                # apart: of two that are too near, one up and one down
        for i in range(1, len(ends)):
            overlap = max(0, heights[i - 1] + step - heights[i]) / 2
            heights[i - 1], heights[i] = heights[i - 1] - overlap, heights[i] + overlap
    for i in range(len(ends)):                          # but not beyond the axes
        heights[i] = max(heights[i], bottom + step * (i + 0.5))
    for i in reversed(range(len(ends))):
        heights[i] = min(heights[i], top - step * (len(ends) - 0.5 - i))
    for (x, y, name, colour), height in zip(ends, heights):
        beside = float(back(scale(last) + 0.05 * (scale(last) - scale(left))))
        ax.annotate(name, (x, y), xytext=(beside, along.transform((0, height))[1]), color=colour, va="center",
                    arrowprops=dict(arrowstyle="-", color=colour, lw=0.6, relpos=(0, 0.5)))

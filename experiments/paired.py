"""What a few random seeds say: the mean of values that belong to one seed each, and its 95% interval by Student's t."""
import math

import numpy as np

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}        # 97.5% quantile of t for so many degrees of freedom


def t95(freedom):
    """That quantile; above the table by the expansion in 1 / freedom, right to 0.002."""
    if freedom in T95:
        return T95[freedom]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def interval(values):                                            # -> mean, low, high
    """Of values that belong to one seed each; low and high are nan for a single one."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = t95(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def said(values, digits=3):
    """The same as words: mean [low, high], or the mean alone."""
    mean, low, high = interval(values)
    words = f"{mean:+.{digits}f}"
    return words if math.isnan(low) else f"{words} [{low:+.{digits}f}, {high:+.{digits}f}]"

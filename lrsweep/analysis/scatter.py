"""The scatter of points about their trend, whatever the distances between them."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def scatter(steps: Floats, values: Floats) -> Floats:
    """How far each inner point lies from the line through its two neighbours, scaled to the deviation of one point.

    For white noise of deviation s about a straight trend, each value has deviation s: a point minus the weighted mean
    w a + (1 - w) c of its neighbours has variance s^2 (1 + w^2 + (1 - w)^2). With equal distances this is the second
    difference over sqrt(6).

    Args:
        steps: Where the points are [n], strictly rising.
        values: The points [n].

    Returns:
        The scaled distances [n - 2]; empty with fewer than three points.
    """
    if len(values) < 3:
        return np.empty(0)
    weight = (steps[2:] - steps[1:-1]) / (steps[2:] - steps[:-2])
    distance = values[1:-1] - (weight * values[:-2] + (1 - weight) * values[2:])
    scaled: Floats = distance / np.sqrt(1 + weight**2 + (1 - weight) ** 2)
    return scaled

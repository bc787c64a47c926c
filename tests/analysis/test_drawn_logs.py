"""How often the diagnosis is wrong on logs that are drawn with the shapes and statistics of published ones."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from lrsweep.analysis.diagnosis import curve, diagnose
from tests.analysis.drawn_logs import BROKEN, HEALTHY, Draw, Rows

SEEDS = range(60)


def labels(shape: Callable[[Draw], Rows]) -> Counter[str]:
    return Counter(diagnose(curve(shape(np.random.default_rng(seed)))).label for seed in SEEDS)


@pytest.mark.parametrize("shape", HEALTHY, ids=lambda shape: shape.__name__)
def test_of_sixty_healthy_runs_at_most_one_is_accused(shape: Callable[[Draw], Rows]) -> None:
    found = labels(shape)
    assert found["healthy"] + found["unknown"] >= len(SEEDS) - 1, found


@pytest.mark.parametrize("shape", BROKEN, ids=lambda shape: shape.__name__)
def test_of_sixty_broken_runs_nine_in_ten_are_named_and_hardly_one_is_healthy(shape: Callable[[Draw], Rows]) -> None:
    found = labels(shape)
    assert sum(found[label] for label in BROKEN[shape]) >= 0.9 * len(SEEDS), found
    assert found["healthy"] <= (3 if "overfitting" in BROKEN[shape] else 1), found

"""What a packed step asks of a GPU, counted on tensors without values; `benchmarks/launches.py` has the whole table."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def launches() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("launches", BENCHMARKS / "launches.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "launches", module)
        spec.loader.exec_module(module)
        return module


@pytest.mark.parametrize(("kernels", "launched", "ms"), [(True, 1550, 23.5), (False, 1950, 29.5)])
def test_a_step_of_eight_trials_is_short_and_waits_for_nothing(
    launches: ModuleType, kernels: bool, launched: int, ms: float
) -> None:
    """All layers cost the same, so two small models tell what the whole one costs."""
    one, three = (launches.count(8, layers=layers, kernels=kernels) for layers in (1, 3))
    for part, most in (("pass", {"launches": launched, "ms": ms}), ("optimizers", {"launches": 30, "ms": 1.2})):
        for measure, limit in most.items():
            by_layer = (three[part][measure] - one[part][measure]) / 2
            assert one[part][measure] + (launches.LAYERS - 1) * by_layer <= limit, (part, measure)
        assert three[part]["waits at"] == {}


def test_what_the_host_waits_for_is_seen(launches: ModuleType) -> None:
    torch = launches.torch
    with launches.counting() as counter:
        x = torch.zeros(4, device="meta")
        x.sum().item()
        torch.zeros(4).to("meta")
        torch.zeros(4).to("meta", non_blocking=True)
    assert counter.waits.total() == 2

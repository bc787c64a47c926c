"""What a pack is loaded with, by what it is loaded for."""

import types

import pytest
import torch

from lrsweep.training.engines import pack_loader
from tests.recorder import tiny

ROWS = [types.SimpleNamespace(input_ids=[0] * length) for length in (256, 768)]


@pytest.mark.parametrize(
    ("overrides", "pays"),
    [
        (("training.max_steps=200",), False),
        (("training.max_steps=20000",), True),
        (("training.max_steps=2000", "training.batch_size=4", "training.gradient_accumulation_steps=4"), True),
    ],
)
def test_kernels_are_compiled_for_a_long_training_only(
    overrides: tuple[str, ...], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with torch.device("meta"):
        half_a_billion = torch.nn.Linear(25_000, 20_000)
    config = tiny(*overrides)
    assert pack_loader._compiling_pays(half_a_billion, config, ROWS, 8) == pays
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not pack_loader._compiling_pays(half_a_billion, config, ROWS, 8)

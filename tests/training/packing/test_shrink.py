"""A pack with fewer slots than before: the memory of the others is given back, first of all."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrsweep.training.packing import train_pass
from tests.training.packing.solo import lora_pack, trials


class FreedBeforeCopied(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes at each copy of the weights whether the gradients' memory has been given back by then."""

    def __init__(self, grads: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grads = weakref.ref(grads)
        self.freed: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.freed.append(self._grads() is None)
        return func(*args, **(kwargs or {}))


def test_a_pack_that_shrinks_needs_no_memory_for_it_and_goes_on_with_the_same_numbers() -> None:
    """Views, which a pass and the optimizers keep, would hold the memory of all slots."""
    curves = []
    for shrinks in (False, True):
        pack = lora_pack("llama", 3, compute=torch.bfloat16, dtype=torch.float32)
        trial = trials(1)[0]
        pack.admit(0, pack.start(trial.lora(), 0), trial.optimizer)
        losses = []
        for step in range(4):
            losses.append(train_pass(pack, 0, 1, trial.batch(step)).item())
            pack.arena.step([0])
            if shrinks and step == 1:
                weights, seen = weakref.ref(pack.arena.weights), FreedBeforeCopied(pack.arena.grads)
                with seen:
                    pack.shrink(1)
                assert seen.freed[0]
                assert weights() is None
                assert pack.arena.weights.shape[0] == pack.arena.grads.shape[0] == pack.arena.slots == 1
        curves.append(losses)
    assert curves[0] == curves[1]
    with pytest.raises(ValueError, match="a slot above is taken"):
        pack.shrink(0)

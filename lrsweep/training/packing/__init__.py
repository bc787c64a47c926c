"""Packed training: K trials at once over one frozen base, each with the same numbers as in a run of its own.

    pack = pack_lora(model, LoraConfig(...), slots=8)
    optimizer = pack.admit(0, pack.start(config, seed), lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True))
    losses = train_pass(pack, 0, 8, join(batches))  # forward and backward of the slots 0 to 7
    norms = pack.arena.step(range(8))
    weights = pack.weights(0)  # of PEFT's adapter_model.safetensors

A pass runs any range of neighbouring slots `start..stop` (`stop` is not included), so a pack may have more slots than
one pass.

Shapes: K slots, k slots of a pass, B batch, T tokens, D width, R rank, V vocabulary, N arena columns (parameters of a
trial, rounded up).
"""

from lrsweep.training.packing.adapters import Adapter
from lrsweep.training.packing.arena import Arena, MakeOptimizer, runs
from lrsweep.training.packing.convert import pack_lora, pack_weights
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.packing.forward_backward import eval_pass, join, train_pass
from lrsweep.training.packing.pack import Pack
from lrsweep.training.packing.unpadded import lay_end_to_end

__all__ = [
    "Adapter",
    "Arena",
    "MakeOptimizer",
    "Pack",
    "Unpackable",
    "eval_pass",
    "join",
    "lay_end_to_end",
    "pack_lora",
    "pack_weights",
    "runs",
    "train_pass",
]

"""Packed training: K trials at once over one frozen base, each with the numbers it would have had alone.

    pack = pack_lora(model, LoraConfig(...), slots=8)
    optimizer = pack.admit(0, pack.start(config, seed), lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True))
    losses = train_pass(pack, 0, 8, join(batches))  # forward and backward of the slots 0..8
    norms = pack.arena.step(range(8))
    PEFT's adapter_model.safetensors = pack.weights(0)

A pass runs any range of neighbouring slots, so that the number of slots and the rows of a pass are two things. Shapes:
K slots, k slots of a pass, B batch, T tokens, D width, R rank, V vocabulary, N columns of the arena (parameters per trial).
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

"""What the trials of one pack share: the converted base, its slots, the data."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrsweep.config import SweepConfig
from lrsweep.finetune.data import collate
from lrsweep.finetune.evaluation import eval_batches
from lrsweep.finetune.inputs import inputs
from lrsweep.finetune.model import enable_checkpointing, load_model, lora_config, make_trainable, resolve_dtype
from lrsweep.packing import Pack, Unpackable, eval_pass, lay_end_to_end, pack_lora, pack_weights

# What may differ between trials of one pack; every other key of these sections changes shapes or the base.
_FREE = {
    "finetune": {"r", "alpha", "dropout", "rslora"},
    "training": {"max_steps", "max_grad_norm", "eval_every", "seed", "horizon", "save_adapter", "checkpoint_seconds"},
}
# Tokens to whose multiples rows are padded for a compiled decoder, so that it has few shapes.
_COMPILED_MULTIPLE = 64


def pack_key(config: SweepConfig) -> str:
    """Trials with the same key may share a pack."""
    sections: dict[str, Any] = {"model": config.model.model_dump(), "data": config.data.model_dump()}
    for name, free in _FREE.items():
        sections[name] = getattr(config, name).model_dump(exclude=free)
    return repr(sections)


def check_packable(config: SweepConfig) -> None:
    """Builds a pack of one slot and drops it. Raises Unpackable with the reason, or InputError."""
    Shared.load(config, 1, config.finetune.r, 1)


def _slots_that_fit(model: nn.Module, config: SweepConfig, rank: int) -> int:
    """How many trials' weights, gradients and AdamW moments fit in half the free memory; at most 8, on a GPU 32."""
    if config.finetune.mode == "lora":
        linear = (module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
        # A quantized weight's shape says nothing; a Conv1D has only its shape.
        sizes = ((m.in_features, m.out_features) if isinstance(m, nn.Linear) else m.weight.shape for m in linear)
        trained = sum(rank * sum(size) for size in sizes)
    else:
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    # Four numbers of four bytes a parameter; the other half is for activations.
    return max(1, min(int(free / 2 / (16 * max(trained, 1))), 32 if on_gpu else 8))


@dataclass(frozen=True)
class Shared:
    """The converted base, its slots, and the data, whose rows a pass pads to a `multiple` of tokens."""

    key: str
    pack: Pack
    rows: Sequence[Any]
    eval_batches: Sequence[dict[str, Tensor]]
    pad_token_id: int
    multiple: int

    @classmethod
    def load(cls, config: SweepConfig, slots: int | Literal["auto"], rank: int, at_most: int) -> "Shared":
        """The pack that the trial belongs to; `at_most` slots where memory decides. Raises Unpackable with the reason."""
        tokenizer, data = inputs(config.model, config.data)
        model = load_model(config.model, config.finetune)
        if config.finetune.dora:
            raise Unpackable(
                "finetune.dora=true: DoRA's norms depend on the base's weights; packed adapters are plain LoRA"
            )
        if config.training.gradient_checkpointing:
            enable_checkpointing(model)
        compute = resolve_dtype(config.model)
        pad = tokenizer.pad_token_id
        held_out = list(eval_batches(data.evaluation, config.training.eval_batch_size, pad))
        # A compiled decoder is to see few shapes.
        unpadded = 0 if config.engine.compile else lay_end_to_end(model, held_out[-1])
        trainable = model if config.finetune.mode == "lora" else make_trainable(model, config.finetune, 0)
        count = min(_slots_that_fit(trainable, config, rank), at_most) if slots == "auto" else int(slots)
        if config.finetune.mode == "lora":
            pack = pack_lora(model, lora_config(config.finetune), count, rank=rank, compute=compute)
        else:
            pack = pack_weights(trainable, count, compute=compute)
        pack = dataclasses.replace(pack, unpadded=unpadded)
        # Some models show only in a pass that their rows cannot be told apart.
        eval_pass(pack, 0, 1, held_out[0])
        if config.engine.compile:
            # A graph for each shape: with lengths as symbols, tracing the packed layers does not come to an end.
            pack.model.get_decoder().compile(dynamic=False)
        return cls(
            pack_key(config), pack, data.train, held_out, pad, _COMPILED_MULTIPLE if config.engine.compile else 1
        )

    @functools.lru_cache(maxsize=32)  # noqa: B019 - lives as long as its pack
    def batch(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """The rows as a padded batch; trials of one seed ask for the same one."""
        return collate([self.rows[row] for row in rows], self.pad_token_id)

    # Frozen, but holding what does not hash: it is itself, for the cache.
    __hash__ = object.__hash__

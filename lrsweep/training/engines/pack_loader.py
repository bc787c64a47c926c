"""Loading a pack: the converted base, its slots, and the data that its trials share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrsweep.config.schema import SweepConfig, trial_part
from lrsweep.training.data.loading import collate
from lrsweep.training.evaluation import eval_batches
from lrsweep.training.inputs import inputs
from lrsweep.training.lora_init import draws_from_base, takes_from_base
from lrsweep.training.loss import weighing
from lrsweep.training.model import (
    enable_checkpointing,
    load_model,
    lora_config,
    make_trainable,
    prepare_quantized,
    resolve_dtype,
)
from lrsweep.training.packing import Pack, Unpackable, eval_pass, lay_end_to_end, pack_lora, pack_weights
from lrsweep.training.packing.graphs import EagerRunner, GraphRunner, PassRunner
from lrsweep.training.unfrozen import unfrozen

# A compiled decoder gets rows padded to multiples of this many tokens, so that it sees few shapes.
_COMPILED_MULTIPLE = 64
# On an H200: what kernels save of the training, what compiling them took, and how fast it trained eight trials of a
# 0.5B model.
_SAVED, _COMPILING_SECONDS, _OPERATIONS_PER_SECOND = 0.2, 10.0, 3.2e14
# Batches kept: trials of one seed ask for the same ones.
_BATCHES_KEPT = 32


def pack_key(config: SweepConfig) -> str:
    """Trials with the same key can share a pack."""
    finetune, seed = config.finetune, config.training.seed
    lora = lora_config(finetune)
    taken = (finetune.r, finetune.alpha, finetune.rslora) if finetune.mode == "lora" and takes_from_base(lora) else ()
    return repr((trial_part(config, same_in_pack=True), taken, seed if taken and draws_from_base(lora) else None))


@dataclass(frozen=True)
class LoadedPack:
    """The converted base, its slots, and the data.

    Attributes:
        key: The pack key of its trials.
        pack: The base and its slots.
        runner: Runs the pack's training passes.
        rows: The training set.
        batch: The rows of these numbers as a padded batch.
        eval_batches: The eval set in batches.
        multiple: A pass pads its rows to a multiple of this many tokens.
    """

    key: str
    pack: Pack
    runner: PassRunner
    rows: Sequence[Any]
    batch: Callable[[tuple[int, ...]], dict[str, Tensor]]
    eval_batches: Sequence[dict[str, Tensor]]
    multiple: int


def load_pack(config: SweepConfig, slots: int | Literal["auto"], rank: int, at_most: int) -> LoadedPack:
    """Loads the pack that a trial belongs to.

    Args:
        config: The trial's config.
        slots: Slots of the pack; `auto` is as many as memory allows, up to `at_most`.
        rank: The highest LoRA rank that the slots have room for.
        at_most: The limit for `auto`.

    Raises:
        Unpackable: The trial cannot be packed; the message says why.
        InputError: Model or data cannot be loaded.
    """
    if config.training.loss == "asft":
        raise Unpackable("training.loss=asft: each batch needs a pass of the base too, and its own mean")
    if config.finetune.pure_bf16:
        raise Unpackable("finetune.pure_bf16=true: packs keep the trained weights in float32")
    if config.model.output_router_logits:
        raise Unpackable("model.output_router_logits=true: the router's loss is of a whole batch, not of one trial")
    tokenizer, data = inputs(config.model, config.data)
    model = load_model(config.model, config.finetune)
    if config.finetune.dora:
        raise Unpackable(
            "finetune.dora=true: DoRA's norms depend on the base's weights; packed adapters are plain LoRA"
        )
    prepare_quantized(model)
    if config.training.gradient_checkpointing:
        enable_checkpointing(model)
    compute = resolve_dtype(config.model)
    pad_token_id = tokenizer.pad_token_id
    held_out = list(eval_batches(data.evaluation, config.training.eval_batch_size, pad_token_id))
    compiled = config.engine.compile
    # The shortest row and the longest show how the model treats padding, and any limit on how far it looks back.
    by_length = sorted(data.evaluation, key=lambda row: len(row.input_ids))
    probe = collate([by_length[0], by_length[-1]], pad_token_id)
    maskless = lay_end_to_end(model, probe)
    trainable = model if config.finetune.mode == "lora" else make_trainable(model, config.finetune, 0)
    count = min(_slots_that_fit(trainable, config, rank), at_most) if slots == "auto" else int(slots)
    if config.finetune.mode == "lora":
        pack = pack_lora(
            model,
            lora_config(config.finetune),
            count,
            rank=rank,
            compute=compute,
            seed=config.training.seed,
            compile_kernels=not compiled and _compiling_pays(model, config, data.train, count),
        )
    else:
        frozen_rows = unfrozen(trainable, config.finetune.unfrozen_parameters)
        pack = pack_weights(trainable, count, compute=compute, frozen_rows=frozen_rows)
    # A compiled decoder sees few shapes.
    head = dataclasses.replace(pack.head, weigh=weighing(config.training))
    pack = dataclasses.replace(pack, head=head, unpadded=0 if compiled else maskless, maskless=maskless)
    # For some models only a pass shows that the trials' rows cannot be told apart.
    eval_pass(pack, 0, 1, probe)
    if compiled:
        # A graph for each shape: tracing the packed layers with symbolic lengths never ends.
        pack.model.get_decoder().compile(dynamic=False)
    rows = data.train

    # The cache holds rows, not the pack: it must not keep the base in memory after the pack has ended.
    @functools.lru_cache(maxsize=_BATCHES_KEPT)
    def batch(numbers: tuple[int, ...]) -> dict[str, Tensor]:
        return collate([rows[number] for number in numbers], pad_token_id)

    # A graph cannot recompute activations, and it is of no use for weights of which each trial has a copy.
    recordable = pack.arena.weights.is_cuda and config.finetune.mode == "lora" and not compiled
    graphed = recordable and not config.training.gradient_checkpointing
    runner = GraphRunner(pack) if graphed else EagerRunner(pack)
    multiple = _COMPILED_MULTIPLE if compiled else 1
    return LoadedPack(pack_key(config), pack, runner, rows, batch, held_out, multiple)


def check_packable(config: SweepConfig) -> None:
    """Builds a pack of one slot and drops it. Raises Unpackable with the reason, or InputError."""
    load_pack(config, 1, config.finetune.r, 1)


def _compiling_pays(model: nn.Module, config: SweepConfig, rows: Sequence[Any], slots: int) -> bool:
    """Whether a pack's first trials train so long that compiled kernels save more time than compiling them takes."""
    if not torch.cuda.is_available():
        return False
    training = config.training
    length = sum(len(row.input_ids) for row in rows) / max(len(rows), 1)
    steps = slots * training.max_steps * training.gradient_accumulation_steps
    # A token's forward pass and its gradient of activations: 2 operations each for a parameter.
    operations = 4 * sum(weight.numel() for weight in model.parameters()) * steps * training.batch_size * length
    return _SAVED * operations / _OPERATIONS_PER_SECOND > _COMPILING_SECONDS


def _slots_that_fit(model: nn.Module, config: SweepConfig, rank: int) -> int:
    """How many trials' weights, gradients and AdamW moments fit in half the free memory, up to 12, or 32 on a GPU."""
    if config.finetune.mode == "lora":
        linear = (module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
        # A quantized weight's shape is not the layer's; a Conv1D has no in_features.
        sizes = ((m.in_features, m.out_features) if isinstance(m, nn.Linear) else m.weight.shape for m in linear)
        trained = sum(rank * sum(size) for size in sizes)
    else:
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    # Four float32 numbers for each parameter; the other half of the memory is for activations.
    return max(1, min(int(free / 2 / (16 * max(trained, 1))), 32 if on_gpu else 12))

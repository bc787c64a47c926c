"""Tiny models, random trials, and the same trials on stock PEFT, torch.optim.AdamW and clip_grad_norm_ one by one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Trainer,
    set_seed,
)

from lrsweep.training.packing import Pack, eval_pass, join, pack_lora, runs, train_pass
from tests.conftest import DEVICE

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, attention_bias=True),
    "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**COMMON, head_dim=8),
    "mistral": MistralConfig(**COMMON, sliding_window=4),
    "gemma": GemmaConfig(**COMMON, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=1,
    ),
}
KINDS = tuple(CONFIGS)


class _ExactNorm(nn.Module):
    """transformers' RMS norms round to float32 whatever they are given; in float64 a last bit then becomes 1e-8."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "eps", None) or norm.variance_epsilon
        self.one = float("Gemma" in type(norm).__name__)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.one + self.weight)
        return scaled


def tiny(kind: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of this kind with weights that are alive everywhere, norms and biases included."""
    set_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    if dtype == torch.float64:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child).__name__.endswith("RMSNorm"):
                    setattr(parent, name, _ExactNorm(child))
    return model.to(DEVICE, dtype)


@dataclass(frozen=True)
class Trial:
    """What may differ within a pack."""

    seed: int
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0
    steps: int = 5
    rank: int = 4
    alpha: float = 8.0
    rslora: bool = False
    dropout: float = 0.0

    def lora(self, **more: Any) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_rslora=self.rslora,
            lora_dropout=self.dropout,
            **{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **more},
        )

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Two rows of unequal length, padded and masked on the right, prompts unlabelled; of this trial's seed only."""
        generator = torch.Generator().manual_seed(1000 * self.seed + step)

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        lengths = [number(6, 14), number(6, 14)]
        ids = torch.randint(1, VOCABULARY, (2, max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        prompts = torch.tensor([number(0, 4), number(0, 4)])[:, None]
        labels = ids.masked_fill(~mask | (torch.arange(max(lengths)) < prompts), -100)
        return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long(), "labels": labels}


def trials(count: int) -> list[Trial]:
    """Trials that differ in all they may; clipping bites in every other one."""
    return [
        Trial(
            seed=seed,
            lr=10 ** (-3.5 + 0.5 * (seed % 5)),
            betas=((0.9, 0.999), (0.8, 0.99), (0.95, 0.9))[seed % 3],
            eps=(1e-8, 1e-6)[seed % 2],
            weight_decay=(0.0, 0.01, 0.3)[seed % 3],
            max_norm=(0.05, 0.0, 1.0, 0.3)[seed % 4],
            steps=4 + seed % 3,
            rank=(4, 2, 1)[seed % 3],
            alpha=(8.0, 3.0)[seed % 2],
            rslora=seed % 4 == 3,
        )
        for seed in range(count)
    ]


@dataclass
class Curve:
    """What came of a trial: losses and gradient norms by step, the eval loss at the end, the trained weights."""

    losses: list[float]
    norms: list[float]
    eval_loss: float
    weights: Mapping[str, Tensor]


def mean_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """transformers' loss, but that float64 logits stay float64."""
    batch = {key: value.to(DEVICE) for key, value in batch.items()}
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def alone(base: PreTrainedModel, trial: Trial, mode: str = "lora", **lora: Any) -> Curve:
    """The trial by itself, on stock parts. `mode` lora wraps a copy of the base; else what requires grad is trained."""
    model: Any = copy.deepcopy(base)
    if mode == "lora":
        set_seed(trial.seed)
        model = get_peft_model(model, trial.lora(fan_in_fan_out=isinstance(base, GPT2LMHeadModel), **lora))
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [weight for name, weight in named.items() if name in decayed]},
        {"params": [weight for name, weight in named.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = trial.optimizer([group for group in groups if group["params"]])
    losses, norms = [], []
    for step in range(trial.steps):
        loss = mean_loss(model, trial.batch(step))
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), trial.max_norm or float("inf")).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        eval_loss = mean_loss(model.eval(), trial.batch(-1)).item()
    weights = get_peft_model_state_dict(model) if mode == "lora" else named
    return Curve(losses, norms, eval_loss, {name: weight.detach() for name, weight in weights.items()})


def together(
    pack: Pack, queue: Sequence[Trial], *, longest: int | None = None, order: Sequence[int] = ()
) -> list[Curve]:
    """The trials in a pack, each entering at the first step with a free slot; passes of at most `longest` slots."""
    slots = list(order) or list(range(pack.arena.slots))
    waiting = list(enumerate(queue))
    running: dict[int, int] = {}
    curves = [Curve([], [], 0.0, {}) for _ in queue]
    while waiting or running:
        for slot in slots:
            if slot not in running and waiting:
                number, trial = waiting.pop(0)
                start = pack.start(trial.lora() if pack.adapters else None, trial.seed)
                pack.admit(slot, start, trial.optimizer, max_norm=trial.max_norm, seed=trial.seed)
                running[slot] = number
        active = sorted(running)
        for first, last in runs(active, longest):
            batches = [queue[running[slot]].batch(len(curves[running[slot]].losses)) for slot in range(first, last)]
            for slot, loss in zip(range(first, last), train_pass(pack, first, last, join(batches)), strict=True):
                curves[running[slot]].losses.append(loss.item())
        for slot, norm in zip(active, pack.arena.step(active), strict=True):
            curves[running[slot]].norms.append(norm.item())
        for slot in active:
            number = running[slot]
            if len(curves[number].losses) == queue[number].steps:
                sums, counts = eval_pass(pack, slot, slot + 1, queue[number].batch(-1))
                curves[number].eval_loss = sums.sum().item() / int(counts.sum())
                curves[number].weights = pack.weights(slot)
                pack.evict(slot)
                del running[slot]
    return curves


def differences(mine: Curve, theirs: Curve) -> tuple[float, float]:
    """The largest distance in losses (train, eval; and norms, in units of their size above 1) and in weights."""
    assert mine.weights.keys() == theirs.weights.keys()
    sizes = [max(norm, 1.0) for norm in theirs.norms]
    norms = [[norm / size for norm, size in zip(of.norms, sizes, strict=True)] for of in (mine, theirs)]
    losses = torch.tensor([*mine.losses, *norms[0], mine.eval_loss], dtype=torch.float64)
    expected = torch.tensor([*theirs.losses, *norms[1], theirs.eval_loss], dtype=torch.float64)
    weights = [(mine.weights[name] - weight).abs().max().item() for name, weight in theirs.weights.items()]
    return (losses - expected).abs().max().item(), max(weights)


def lora_pack(kind: str, slots: int, dtype: torch.dtype = torch.float64, **options: Any) -> Pack:
    return pack_lora(tiny(kind, dtype), Trial(0).lora(), slots, rank=4, **options)

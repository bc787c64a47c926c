"""The sections of the config that decide what a trial trains: model, data, finetune, optimizer, scheduler, training.

Names are torch's for optimizers, transformers' for schedules and metrics, PEFT's for LoRA. The text under a key is its
description; `trial_key` and `run_key` state what it affects (`key_facts.py`).
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from lrsweep.config.key_facts import run_key, trial_key
from lrsweep.config.patterns import parameter_pattern, regular_expression

# float32, in which trials compute, has no numbers far beyond these.
_SMALLEST, _LARGEST = 1e-36, 1e36
# No run has more steps, and no data set more rows.
_MOST = 10**9
# The widest layers of the largest models have some 50,000 columns: no matrix has a higher rank.
_HIGHEST_RANK = 2**16


def _not_denormal(value: float) -> float:
    if value < _SMALLEST:
        raise ValueError(f"must be at least {_SMALLEST:g}: float32 has no smaller numbers")
    return value


Positive = Annotated[float, Field(gt=0, le=_LARGEST, allow_inf_nan=False), AfterValidator(_not_denormal)]
NonNegative = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(regular_expression)]
NamePattern = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(parameter_pattern)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

OptimizerName = Literal["adamw", "adam", "nadam", "radam", "adamax", "adagrad", "adafactor", "rmsprop", "sgd"]
SchedulerName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
]
DataFormat = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text", "llamafactory", "axolotl", "tokens"]

# What the keys below affect, in the combinations that occur.
_BASE = trial_key(in_pack="same", comparable=False)
_NUMERICS = trial_key(in_pack="same")
_ROWS = trial_key(in_pack="same", comparable=False)
_LATER = trial_key(in_pack="same", comparable=False, later=True)
_BATCHES = trial_key(in_pack="same")
_SHAPE = trial_key(in_pack="same", tuned=True)
_ADDED = trial_key(in_pack="own", tuned=True, later=True)
_LATER_NUMERICS = trial_key(in_pack="same", later=True)
_LATER_OBJECTIVE = trial_key(in_pack="same", later=True)
_LATER_SHAPE = trial_key(in_pack="same", tuned=True, later=True)
_TUNED = trial_key(in_pack="own", tuned=True)
_OWN = trial_key(in_pack="own")

# PEFT's false is left out: with random A and B, the model would not start as the base.
_INITIALISATIONS = r"^(gaussian|orthogonal|olora|pissa|pissa_niter_[1-9][0-9]?)$"


class Section(BaseModel):
    """A group of config keys: frozen and strictly typed; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """The model to fine-tune."""

    path: Annotated[str, _BASE]
    """A local folder, an id on Hugging Face's hub, or `modelscope:` and an id on ModelScope; `embedded` is the small
    model that ships with lrsweep, and `smollm2_135m` comes from a Python package."""
    revision: Annotated[str | None, _BASE] = None
    """The branch, tag or commit of a hub model."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float64"], _NUMERICS] = "auto"
    """The model's dtype. `auto` is bfloat16 on a GPU that supports it, else float32."""
    attn_implementation: Annotated[str | None, _NUMERICS] = None
    """transformers' name of an attention kernel (`sdpa`, `eager`, `flash_attention_2`); null is its default."""
    quantization: Annotated[Literal["4bit", "8bit"] | None, _NUMERICS] = None
    """Quantizes the frozen base with bitsandbytes. Needs CUDA."""
    double_quantization: Annotated[bool, _LATER_NUMERICS] = True
    """For 4bit: quantizes the quantization's own constants too."""
    special_tokens: Annotated[dict[str, str], _LATER] = Field(default_factory=dict)
    """Other bos, eos or unk tokens of the tokenizer's vocabulary, such as {eos_token: <|im_end|>}."""
    pad_embeddings_to_multiple_of: Annotated[Count | None, _LATER_NUMERICS] = None
    """Adds rows to the embeddings of a model that has fewer than the tokenizer has tokens, rounded up to a multiple of
    this. Null adds none."""
    output_router_logits: Annotated[bool, _LATER] = False
    """For a mixture of experts: adds the router's load-balancing loss to the losses of training and evaluation, as in
    transformers; not packed. False is what the model's own config says."""
    router_aux_loss_coef: Annotated[NonNegative | None, _LATER] = None
    """For `output_router_logits`: the weight of that loss; null is the model's own."""
    trust_remote_code: Annotated[bool, _BASE] = False
    """Runs the model repository's own code. Needs `revision` pinned to a commit."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code runs the repository's code: pin model.revision to a 40-digit commit")
        return self

    @model_validator(mode="after")
    def _weight_of_a_loss(self) -> Self:
        if self.router_aux_loss_coef is not None and not self.output_router_logits:
            raise ValueError(
                f"router_aux_loss_coef={self.router_aux_loss_coef:g} is the weight of the router's loss: set "
                "output_router_logits=true, or it to null"
            )
        return self


class DataConfig(Section):
    """The rows to train and evaluate on."""

    path: Annotated[str, _ROWS]
    """A file (JSON, JSONL, CSV, Parquet), a folder, a hub id, or `embedded`. For `llamafactory`, the folder of a
    dataset_info.json, or `REMOTE:` and the hub id of a data set that has one."""
    format: Annotated[DataFormat, _ROWS]
    """The format of a row."""
    name: Annotated[str | None, _ROWS] = None
    """The hub data set's config. For `llamafactory`, names in dataset_info.json, joined by commas."""
    eval_name: Annotated[str | None, _ROWS] = None
    """For `llamafactory`: the data sets to evaluate on, as in `name`."""
    template: Annotated[str | None, _ROWS] = None
    """For `llamafactory` and `axolotl`: a template of that trainer's, instead of the tokenizer's chat template. For
    `alpaca`: instead of that the prompt of Stanford's Alpaca in a style of Axolotl's, `alpaca` (### Instruction:),
    `alpaca:chat`, `alpaca:chatml` or `alpaca:phi`."""
    max_rows_per_set: Annotated[Count | None, _ROWS] = None
    """For `llamafactory`: uses only the first this many rows of each data set."""
    split: Annotated[str, _ROWS] = "train"
    """The hub data set's split to train on."""
    eval_path: Annotated[str | None, _ROWS] = None
    """The rows to evaluate on. Null: the share `eval_fraction` of `path`."""
    eval_split: Annotated[str | None, _ROWS] = None
    """The hub data set's split to evaluate on."""
    eval_fraction: Annotated[NonNegative, _ROWS] = 0.1
    """The share of the rows that is held out to evaluate on, or, from 1 on, their number: the same rows for every
    trial."""
    max_length: Annotated[int, Field(ge=2, le=_MOST), _ROWS] = 1024
    """Rows are truncated to this many tokens."""
    on_bad_row: Annotated[Literal["drop", "refuse"], _LATER] = "drop"
    """What happens to rows without anything to learn, such as an empty answer: they are left out and counted, up to 5 %
    of the rows; or the sweep is refused."""
    drop_long_rows: Annotated[bool, _LATER] = False
    """Leaves rows of more than `max_length` tokens out, instead of truncating them."""
    train_on_prompt: Annotated[bool, _LATER] = False
    """Learns whole conversations, not only the answers in them. Of `prompt_completion` rows only the completion."""
    max_train_rows: Annotated[Count | None, _BATCHES] = None
    """Trains on at most this many rows."""
    max_eval_rows: Annotated[Count | None, _ROWS] = None
    """Evaluates on at most this many rows."""
    packing: Annotated[bool, _BATCHES] = False
    """Joins short rows into blocks of up to `max_length` tokens; rows in a block do not attend to each other."""
    columns: Annotated[Mapping[str, str], Strict(False), _ROWS] = Field(default_factory=dict)
    """Names of columns that differ from the format's, such as {instruction: question}."""
    tokenized_by: Annotated[Literal["axolotl", "ms-swift"] | None, _LATER] = None
    """For `tokens`: the trainer that reads and tokenises the rows with its own code, once; `path` is then only a name.
    Null: the rows of `path` are tokens."""
    trainer_config: Annotated[dict[str, Any], _LATER] = Field(default_factory=dict)
    """For `tokenized_by`: that trainer's own keys of model, data and template."""
    python: Annotated[str | None, _LATER] = None
    """For `tokenized_by`: the Python of that trainer's environment; null is the one beside its program on the PATH."""

    @model_validator(mode="after")
    def _tokenized_rows_are_tokens(self) -> Self:
        if self.tokenized_by is not None and self.format != "tokens":
            raise ValueError(f"tokenized_by={self.tokenized_by} makes rows of tokens: set data.format=tokens")
        if (self.tokenized_by is None) != (not self.trainer_config):
            raise ValueError("tokenized_by and trainer_config belong together: give both or neither")
        return self


class FinetuneConfig(Section):
    """What is trained."""

    mode: Annotated[Literal["lora", "full", "freeze"], _SHAPE]
    """`lora`: adapters. `full`: all weights. `freeze`: the last layers, or the parameters of `unfrozen_parameters`."""
    r: Annotated[int, Field(ge=1, le=_HIGHEST_RANK), _TUNED] = 8
    """LoRA's rank."""
    alpha: Annotated[Positive, _TUNED] = 16.0
    """LoRA's alpha: the adapter's output is scaled by alpha / r."""
    dropout: Annotated[Fraction, _TUNED] = 0.0
    """Dropout on LoRA's input."""
    target_modules: Annotated[
        Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] | None,
        _SHAPE,
    ] = "all-linear"
    """The modules that get an adapter: a list of names, `all-linear`, or a regular expression for their whole names.
    Null is PEFT's own choice for the model's type."""
    dora: Annotated[bool, _SHAPE] = False
    """DoRA: learns magnitude and direction separately."""
    rslora: Annotated[bool, _TUNED] = False
    """rsLoRA: scales by alpha / sqrt(r)."""
    init_lora_weights: Annotated[Literal[True] | Annotated[str, Field(pattern=_INITIALISATIONS)], _LATER_SHAPE] = True
    """How LoRA starts, by PEFT's names: `true` (B is zero), `gaussian`, `orthogonal`, `olora`, `pissa`, or
    `pissa_niter_16` for PiSSA by 16 iterations, which is faster. A saved adapter fits the base as it was."""
    loraplus_lr_ratio: Annotated[Positive | None, _ADDED] = None
    """LoRA+: the learning rate of B over that of A, which is `optimizer.lr`; null trains both at the same."""
    trainable_layers: Annotated[Count, _SHAPE] = 2
    """How many of the last layers mode `freeze` trains."""
    unfrozen_parameters: Annotated[tuple[NamePattern, ...], Strict(False), _LATER_SHAPE] = ()
    """For `freeze`: trains the parameters whose names start with one of these regular expressions, instead of the last
    layers. As in Axolotl, a dot is a dot except in `.+`, and a range of rows may follow, as in
    `^model.embed_tokens.weight$[:32000]`: other rows get gradients of zero, though they decay."""
    pure_bf16: Annotated[bool, _LATER_SHAPE] = False
    """For `full` and `freeze`: keeps the trained weights and the optimizer's moments in bfloat16, as TRL, Axolotl and
    ms-swift may do. Updates below the rounding of a weight, some 0.4 %, are lost. False keeps them in float32."""

    @model_validator(mode="after")
    def _can_start(self) -> Self:
        if self.pure_bf16 and self.mode == "lora":
            raise ValueError("pure_bf16=true is for mode full and freeze: adapters are trained in float32")
        if self.unfrozen_parameters and self.mode != "freeze":
            raise ValueError(f"unfrozen_parameters is for mode freeze, not {self.mode}; set finetune=freeze")
        init = str(self.init_lora_weights)
        if init == "orthogonal" and self.r % 2:
            raise ValueError(f"init_lora_weights=orthogonal needs an even r, and r is {self.r}")
        if self.dora and init.startswith(("pissa", "olora")):
            raise ValueError(f"init_lora_weights={init} changes the base that dora measures; set dora=false")
        return self


class OptimizerConfig(Section):
    """A torch.optim optimizer."""

    name: Annotated[OptimizerName, _TUNED]
    """torch's name, in lower case."""
    lr: Annotated[Positive, _TUNED]
    """The peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Strict(False), _TUNED] = (0.9, 0.999)
    """Adam's betas, for optimizers that have them."""
    eps: Annotated[Positive, _TUNED] = 1e-8
    """Adam's epsilon, for optimizers that have it."""
    weight_decay: Annotated[NonNegative, _TUNED] = 0.0
    """Weight decay. It does not apply to norms and biases, as in transformers' Trainer."""
    lr_groups: Annotated[Mapping[Pattern, Positive], Strict(False), _ADDED] = Field(default_factory=dict)
    """Parameters with a learning rate of their own: its ratio to `lr`, by a regular expression that is found in their
    names, such as {embed_tokens: 0.1}. The first that fits counts."""
    kwargs: Annotated[dict[str, Any], _TUNED] = Field(default_factory=dict)
    """More arguments of the optimizer, such as {momentum: 0.9}."""


class SchedulerConfig(Section):
    """A transformers learning-rate schedule."""

    name: Annotated[SchedulerName, _TUNED]
    """transformers' name."""
    warmup_steps: Annotated[int | None, Field(ge=0, le=_MOST), _TUNED] = None
    """Warm-up in optimizer steps."""
    warmup_ratio: Annotated[Fraction | None, _TUNED] = None
    """Warm-up as a share of the schedule. Set this or `warmup_steps`, not both."""
    kwargs: Annotated[dict[str, Any], _TUNED] = Field(default_factory=dict)
    """More arguments of the schedule, such as {min_lr_rate: 0.1}."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give warmup_steps or warmup_ratio, not both (set the other to null)")
        return self

    def warmup(self, schedule_steps: int) -> int:
        """Warm-up steps of a schedule of `schedule_steps` optimizer steps; a ratio rounds up, as in transformers."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_ratio or 0.0) * schedule_steps)


class TrainingConfig(Section):
    """One trial: `max_steps` optimizer steps of `batch_size` x `gradient_accumulation_steps` rows."""

    max_steps: Annotated[Count, _OWN]
    """Optimizer steps of a trial."""
    batch_size: Annotated[Count, _BATCHES]
    """Rows in one forward pass."""
    gradient_accumulation_steps: Annotated[Count, _BATCHES] = 1
    """Forward passes in one optimizer step."""
    max_grad_norm: Annotated[NonNegative, _OWN] = 1.0
    """Clips the gradients' norm; 0 turns clipping off."""
    eval_every: Annotated[Count, _OWN]
    """Optimizer steps between two evaluations."""
    eval_batch_size: Annotated[Count, _BATCHES] = 32
    """Rows in one forward pass of an evaluation."""
    seed: Annotated[Seed, _OWN] = 0
    """The seed of the adapter's weights, the row order and dropout."""
    gradient_checkpointing: Annotated[bool, _NUMERICS] = False
    """Recomputes activations in the backward pass: less memory, more time."""
    loss: Annotated[Literal["cross_entropy", "dft", "eaft", "asft"], _LATER_OBJECTIVE] = "cross_entropy"
    """What training minimises: the cross-entropy of all label tokens alike, or each weighted by its own probability
    (`dft`, dynamic fine-tuning), or by how undecided the model is (`eaft`, entropy-adaptive), or as `dft` and near the
    base (`asft`, anchored; not packed). The losses that trials report stay plain cross-entropies."""
    eaft_alpha: Annotated[NonNegative, _LATER_OBJECTIVE] = 1.0
    """For `loss=eaft`: the power of the entropy."""
    asft_alpha: Annotated[NonNegative, _LATER_OBJECTIVE] = 0.1
    """For `loss=asft`: the weight of the divergence from the base."""
    mean_over: Annotated[Literal["tokens", "batches"], _LATER_OBJECTIVE] = "tokens"
    """With gradient accumulation, a step's loss is the mean over its label tokens, as in transformers' Trainer, to
    which each batch adds its router's loss (`tokens`); or it is the mean of the batches' losses, as in Axolotl
    (`batches`)."""
    horizon: Annotated[Count | None, _OWN] = None
    """Optimizer steps of the real run. Trials follow the real run's schedule and stop after `max_steps`. If `max_steps`
    is searched, each trial has a schedule of its own length, and the best rate for this length follows from theirs."""
    save_adapter: Annotated[bool, run_key()] = True
    """Keeps the adapters of complete trials."""
    checkpoint_seconds: Annotated[NonNegative | None, run_key()] = 60.0
    """Checkpoints a trial at an evaluation if its last checkpoint is this old, or older if writing would take more than
    a tenth of the time; 0 is at every evaluation, null is never."""

    @model_validator(mode="after")
    def _mean_of_plain_losses(self) -> Self:
        if self.mean_over == "batches" and self.loss != "cross_entropy":
            raise ValueError(f"loss={self.loss} has its own mean; set mean_over=tokens, or loss=cross_entropy")
        return self

    @model_validator(mode="after")
    def _horizon_is_at_least_max_steps(self) -> Self:
        if self.horizon is not None and self.horizon < self.max_steps:
            raise ValueError(f"horizon ({self.horizon}) is the real run's steps: at least max_steps ({self.max_steps})")
        return self

    @property
    def schedule_steps(self) -> int:
        """Length of the learning-rate schedule, in optimizer steps."""
        return self.horizon or self.max_steps

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step: the effective batch size."""
        return self.batch_size * self.gradient_accumulation_steps

"""The schema of a sweep: frozen, typed, validated once. Past this point nobody sees a DictConfig.

Names are the field's: torch's for optimizers, transformers' for schedules and metrics, PEFT's for LoRA.
"""

import difflib
import math
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
    model_validator,
)

from lrsweep.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# A sweep's name is a folder's.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

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
DataFormat = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text", "llamafactory"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


class ModelConfig(_Section):
    """`path` is a local folder, a hub id, or `embedded` for the small model that ships with lrsweep."""

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    attn_implementation: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code runs the repository's code: pin model.revision to a 40-digit commit")
        return self


class DataConfig(_Section):
    """`path` is a file (JSON, JSONL, CSV, Parquet), a folder, a hub id, or `embedded`.

    The eval set is `eval_path`, or else the share `eval_fraction` of `path`.

    In format `llamafactory`, `path` is the folder of a dataset_info.json, `name` and `eval_name` are data sets in it, joined
    by commas, of each of which the first `max_rows_per_set` rows count; `template` is LLaMA-Factory's name for what the
    tokenizer's chat template has to agree with.
    """

    path: str
    format: DataFormat
    name: str | None = None
    eval_name: str | None = None
    template: str | None = None
    max_rows_per_set: Count | None = None
    split: str = "train"
    eval_path: str | None = None
    eval_split: str | None = None
    eval_fraction: Fraction = 0.1
    max_length: Annotated[int, Field(ge=2)] = 1024
    max_train_rows: Count | None = None
    max_eval_rows: Count | None = None
    packing: bool = False
    columns: Annotated[Mapping[str, str], Strict(False)] = Field(default_factory=dict)


class FinetuneConfig(_Section):
    """What is trained. LoRA options count in mode `lora`, `trainable_layers` in mode `freeze`."""

    mode: Literal["lora", "full", "freeze"]
    r: Count = 8
    alpha: Positive = 16.0
    dropout: Fraction = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] = (
        "all-linear"
    )
    dora: bool = False
    rslora: bool = False
    trainable_layers: Count = 2


class OptimizerConfig(_Section):
    """A torch.optim optimizer. `betas` and `eps` reach those optimizers that have them."""

    name: OptimizerName
    lr: Positive
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    kwargs: dict[str, Any] = Field(default_factory=dict)


class SchedulerConfig(_Section):
    """A transformers schedule. Warm-up is given in steps or as a share of the schedule, not both."""

    name: SchedulerName
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_ratio: Fraction | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give warmup_steps or warmup_ratio, not both (set the other to null)")
        return self

    def warmup(self, schedule_steps: int) -> int:
        """Warm-up steps of a schedule of `schedule_steps` optimizer steps (a ratio is rounded up, as transformers does)."""
        return (
            self.warmup_steps
            if self.warmup_steps is not None
            else math.ceil((self.warmup_ratio or 0.0) * schedule_steps)
        )


class TrainingConfig(_Section):
    """One trial: `max_steps` optimizer steps of `batch_size` x `gradient_accumulation_steps` rows.

    `horizon` is the length of the real run: the schedule is the real run's, and the trial stops early in it. At an
    evaluation a trial is checkpointed if its last checkpoint is `checkpoint_seconds` old (null: never).
    """

    max_steps: Count
    batch_size: Count
    gradient_accumulation_steps: Count = 1
    max_grad_norm: NonNegative = 1.0
    eval_every: Count
    eval_batch_size: Count = 32
    seed: Seed = 0
    gradient_checkpointing: bool = False
    horizon: Count | None = None
    save_adapter: bool = True
    checkpoint_seconds: NonNegative | None = 60.0

    @model_validator(mode="after")
    def _horizon_reaches_past_the_trial(self) -> Self:
        if self.horizon is not None and self.horizon < self.max_steps:
            raise ValueError(f"horizon ({self.horizon}) is the real run's steps: at least max_steps ({self.max_steps})")
        return self

    @property
    def schedule_steps(self) -> int:
        """Length of the learning-rate schedule, in optimizer steps."""
        return self.horizon or self.max_steps


class SearchConfig(_Section):
    """How Optuna picks trials. `n_trials` is a total over all runs of the sweep; null means the whole grid.

    `lr_scaling` ties the learning rate to the batch size: an axis value belongs to the base config's batch, and a trial
    with another batch gets it times the ratio (`linear`) or its square root (`sqrt`).

    Beyond that total: `extend` lets a grid's learning rates grow while the best is at their edge, `rescue` tries beta1 = 0.8
    and a longer warm-up where trials diverged, `replicates` trains the best few with so many seeds each, to tell noise from
    gain. `prior` has a search begin at the rate that rules of thumb give; `preflight` looks at gradients before trial 0.
    `max_failures` failed trials end the sweep (null: it goes on with the others).
    """

    method: Literal["auto", "grid", "tpe", "random", "qmc", "gp", "cmaes"]
    n_trials: Count | None = None
    seed: Seed = 0
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    storage: str | None = None
    extend: bool = False
    replicates: Annotated[int, Field(ge=1, le=20)] = 1
    rescue: bool = False
    prior: bool = True
    preflight: bool = True
    max_failures: Count | None = None

    @model_validator(mode="after")
    def _samplers_need_a_total(self) -> Self:
        if self.method not in ("auto", "grid") and self.n_trials is None:
            raise ValueError(
                f"method {self.method} never ends by itself: set search.n_trials, the total number of trials"
            )
        if self.extend and self.method not in ("auto", "grid"):
            raise ValueError(f"extend=true grows grids; method {self.method} keeps to its range: widen space instead")
        return self


class PrunerConfig(_Section):
    """Stops trials early, by eval_loss at every evaluation; `kwargs` are the pruner's.

    `lockstep` is ours, for packs; median, successive_halving and hyperband are Optuna's. `auto` is lockstep for searches
    that may be packed, none for grids and for the trainer engine.
    """

    name: Literal["auto", "none", "lockstep", "median", "successive_halving", "hyperband"]
    kwargs: dict[str, Any] = Field(default_factory=dict)


class EngineConfig(_Section):
    """What trains the trials.

    `trainer` is stock transformers Trainer + PEFT, one trial at a time; `packed` trains up to `slots` trials at once over one
    base; `auto` is packed where that can be. `compile` has torch.compile at the decoder: minutes at first, then faster
    steps on a GPU.

    `external` is another trainer's own `command`, which gets {config}, a file in its `dialect`.
    """

    name: Literal["auto", "packed", "trainer", "external"]
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    compile: bool = False
    command: str | None = None
    dialect: str | None = None

    @model_validator(mode="after")
    def _command_is_words(self) -> Self:
        try:
            shlex.split(self.command or "")
        except ValueError as fault:
            raise ValueError(f"command: {str(fault).lower()}; close every quote in it") from None
        return self


class ExecutorConfig(_Section):
    """Where workers run, and how many: `auto` is one for each GPU, or one.

    `local` are processes on this machine; `inline` is this process itself, for debuggers and notebooks. `ray` are actors on
    the cluster at `address`, or on a Ray that is started here for the occasion. `slurm` is an array job, by submitit:
    `cluster` auto is SLURM where there is one; `local` and `debug` do without; `options` are submitit's parameters.
    """

    name: Literal["local", "inline", "ray", "slurm"]
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    gpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    address: str | None = None
    cluster: Literal["auto", "slurm", "local", "debug"] = "auto"
    options: dict[str, Any] = Field(default_factory=dict)


class TrackingConfig(_Section):
    """Where loss curves go. `uri` null is sqlite:///mlflow.db in the working folder."""

    name: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True


class OriginConfig(_Section):
    """The config of another trainer that the sweep was imported from. `rest` is YAML that an export to it gives back."""

    dialect: Literal["llamafactory", "transformers", "trl", "axolotl"]
    file: str
    rest: str = ""


class SweepConfig(_Section):
    """A whole sweep. `space` mirrors this tree; its leaves are lists of choices or ranges.

    A sweep of this name that is there already is gone on with (`resume` auto), or put aside (fresh).
    """

    name: Annotated[str, Field(pattern=NAME)]
    model: ModelConfig
    data: DataConfig
    finetune: FinetuneConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    training: TrainingConfig
    search: SearchConfig
    space: dict[str, Any]
    pruner: PrunerConfig
    engine: EngineConfig
    executor: ExecutorConfig
    tracking: TrackingConfig
    origin: OriginConfig | None = None
    resume: Literal["auto", "fresh"] = "auto"

    @model_validator(mode="after")
    def _a_trial_comes_past_its_warmup(self) -> Self:
        training = self.training
        warmup = self.scheduler.warmup(training.schedule_steps)
        # A trial that is the whole run may warm up as long as the run does.
        if training.max_steps < min(2 * warmup, training.schedule_steps):
            raise ValueError(
                f"training: max_steps ({training.max_steps}) is too few for horizon ({training.horizon}): the warm-up alone "
                f"takes {warmup} steps, and no trial would train at its rate; set training.max_steps to {2 * warmup} or more, "
                "or a shorter warm-up (scheduler.warmup_ratio)"
            )
        return self

    @model_serializer(mode="wrap")
    def _origin_only_where_there_is_one(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        if tree.get("origin") is None:
            tree.pop("origin", None)
        return tree


def validate(tree: Mapping[str, Any]) -> SweepConfig:
    """The tree as a SweepConfig. Raises InputError naming the first bad key, its value, the rule and the nearest name."""
    try:
        return SweepConfig.model_validate(dict(tree))
    except ValidationError as fault:
        raise InputError(_one_line(fault)) from None


def replace(config: SweepConfig, changes: Mapping[str, Any]) -> SweepConfig:
    """The config with dotted keys set (`{"optimizer.lr": 1e-4}`), validated anew."""
    tree = config.model_dump()
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return validate(tree)


def keys(section: type[BaseModel] = SweepConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the schema that holds a value (`optimizer.lr`), in order."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay whole, and so does an empty mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def did_you_mean(key: str) -> str:
    """A hint with the schema's nearest key, or nothing."""
    known = keys()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        near = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def _one_line(fault: ValidationError) -> str:
    error = fault.errors()[0]
    # Union branches and validators add parts to the location that are no config keys.
    key = ".".join(str(part) for part in error["loc"] if re.fullmatch(r"[a-z_]+|\d+", str(part)))
    if error["type"] == "extra_forbidden":
        key = ".".join(str(part) for part in error["loc"])
        return f"{key}: no such key{did_you_mean(key)}"
    if error["type"] == "missing":
        return f"{key}: missing; set {key}=..."
    if error["type"] == "string_pattern_mismatch":
        return f"{key}={error['input']!r}: letters, digits, '.', '_' and '-' only, starting with a letter or digit"
    rule = error["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    if not key:
        return rule
    if isinstance(error["input"], Mapping):
        return f"{key}: {rule}"
    return f"{key}={error['input']!r}: {rule}"

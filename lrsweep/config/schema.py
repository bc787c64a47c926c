"""The schema of a sweep's config: frozen, typed, validated once. No other code sees a DictConfig.

The sections that decide what a trial trains are in `trial_schema.py`. The text under a key is its description.
"""

import difflib
import re
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from lrsweep.config.key_facts import KeyFacts, facts_of, leaves, run_key, sweep_key
from lrsweep.config.objective import Objective
from lrsweep.config.synonyms import meant
from lrsweep.config.trial_schema import (
    Count,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    Section,
    Seed,
    TrainingConfig,
)
from lrsweep.errors import InputError
from lrsweep.files.paths import NAME
from lrsweep.files.redaction import Redactor

# The sections that decide what a trial trains.
TRIAL_SECTIONS = ("model", "data", "finetune", "optimizer", "scheduler", "training")
# A time, such as 30min: a number and its unit.
_DURATION = r"^([0-9]+(?:\.[0-9]+)?)(s|min|h)$"


def _steps_or_time(value: Any) -> Any:
    steps = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or steps or (isinstance(value, str) and re.fullmatch(_DURATION, value)):
        return value
    raise ValueError("must be a number of steps, or a time such as 30s, 30min or 2h")


class SearchConfig(Section):
    """How trials are chosen."""

    method: Annotated[str, sweep_key()]
    """`grid`; `refine`: the learning rate, coarse to fine, then up to three other keys; an Optuna sampler: tpe, random,
    qmc, gp or cmaes; or `auto`: chosen by the axes and the number of trials."""
    n_trials: Annotated[Count | None, run_key()] = None
    """Trials in total, over all runs of the sweep. Null is the whole grid, as many as `refine` needs, or 16 of a search
    that `auto` has chosen."""
    tolerance: Annotated[float, Field(gt=0, lt=1), run_key()] = 0.01
    """`refine` ends once the chance that another rate is better by this share of the improvement is below 5 %. The
    improvement is the loss before training minus the best loss."""
    budget: Annotated[int | str | None, BeforeValidator(_steps_or_time), run_key()] = None
    """`refine` trains nothing that would need more than this: optimizer steps of all trials together, or time, such as
    30min or 2h. The first rate is trained to its end in any case."""
    seed: Annotated[Seed, sweep_key()] = 0
    """The sampler's seed."""
    lr_scaling: Annotated[Literal["none", "sqrt", "linear"], sweep_key()] = "none"
    """Scales a trial's learning rate by its batch size over the base config's (`linear`), or its root (`sqrt`)."""
    metric: Annotated[str, Field(min_length=1), sweep_key()] = "eval_loss"
    """What trials are ranked by: any number that they log."""
    direction: Annotated[Literal["minimize", "maximize"], sweep_key()] = "minimize"
    """Whether the lowest or the highest `metric` is best."""
    storage: Annotated[Annotated[str, Field(min_length=1)] | None, run_key()] = None
    """The study's database. Null is the sweep's own study.db; workers on several machines need PostgreSQL or MySQL."""
    extend: Annotated[bool, run_key()] = False
    """Adds learning rates to a grid while the best one is the lowest or the highest."""
    replicates: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=20)], run_key()] = "auto"
    """Trains the best three trials with this many seeds each, to measure the noise. `auto`: with 2 to 4, as many as the
    decision needs. 1: once only, so that the noise is not known."""
    rescue: Annotated[bool, run_key()] = False
    """If trials diverge, retries the lowest such learning rate with beta1 = 0.8 and with a longer warm-up."""
    prior: Annotated[bool, run_key()] = True
    """Starts a search at the learning rate that rules of thumb give."""
    preflight: Annotated[bool, run_key()] = True
    """Checks the gradients on a few rows before trial 0."""
    max_failures: Annotated[Count | None, run_key()] = None
    """Ends the sweep after this many failed trials. Null: it continues with the others."""

    @model_validator(mode="after")
    def _samplers_need_a_total(self) -> Self:
        if self.method not in ("auto", "grid", "refine") and self.n_trials is None:
            raise ValueError(
                f"method {self.method} never ends by itself: set search.n_trials, the total number of trials"
            )
        if self.extend and self.method not in ("auto", "grid"):
            raise ValueError(f"extend=true grows grids; method {self.method} keeps to its range: widen space instead")
        return self

    @property
    def objective(self) -> Objective:
        """What trials are ranked by."""
        return Objective(self.metric, self.direction == "maximize")

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None if it is none, or in steps."""
        found = re.fullmatch(_DURATION, str(self.budget))
        return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else None


def current_value(key: str, value: Any) -> Any:
    """The value by its current name: lrsweep 0.1.0 called the pruner for packs `lockstep`."""
    return "sync_halving" if (key, value) == ("pruner.name", "lockstep") else value


class PrunerConfig(Section):
    """Stops trials early, by their eval_loss at each evaluation."""

    name: Annotated[
        Literal["auto", "none", "sync_halving", "median", "successive_halving", "hyperband"],
        BeforeValidator(lambda value: current_value("pruner.name", value)),
        sweep_key(),
    ]
    """`sync_halving` compares all trials of a pack at once; median, successive_halving and hyperband are Optuna's.
    `auto` is sync_halving for searches that may be packed, none for grids and for the trainer engine."""
    kwargs: Annotated[dict[str, Any], sweep_key()] = Field(default_factory=dict)
    """The pruner's arguments."""


class EngineConfig(Section):
    """What trains the trials."""

    name: Annotated[str, run_key()]
    """`trainer`: stock transformers Trainer and PEFT, one trial at a time. `packed`: many trials at once over one base.
    `auto`: packed if possible. `external`: the user's own command."""
    slots: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=256)], run_key()] = "auto"
    """Trials in a pack, or commands at once; `auto` is as many as fit in memory."""
    compile: Annotated[bool, run_key()] = False
    """Uses torch.compile: it takes minutes at first, then steps on a GPU are faster."""
    command: Annotated[str | None, sweep_key()] = None
    """For `external`: the trainer's command, with {config} in place of its config file."""
    dialect: Annotated[str | None, sweep_key()] = None
    """For `external`: the trainer whose config file it is."""
    python: Annotated[str | None, run_key()] = None
    """For `external`: the Python of the trainer's environment, whose folder has the command. Null looks on PATH."""

    @model_validator(mode="after")
    def _command_can_be_split(self) -> Self:
        try:
            shlex.split(self.command or "")
        except ValueError as fault:
            raise ValueError(f"command: {str(fault).lower()}; close every quote in it") from None
        return self


class ExecutorConfig(Section):
    """Where workers run, and how many."""

    name: Annotated[str, run_key()]
    """`local`: processes on this machine. `inline`: a thread of this process. `ray`: actors. `slurm`: an array job."""
    workers: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], run_key()] = "auto"
    """The number of workers; `auto` is one for each GPU, or one without GPUs."""
    gpus_per_worker: Annotated[Literal["auto"] | Annotated[int, Field(ge=0, le=64)], run_key()] = "auto"
    """GPUs for each worker on Ray or SLURM."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024), run_key()] = 1
    """CPUs for each worker on Ray or SLURM."""
    address: Annotated[str | None, run_key()] = None
    """The address of a Ray cluster. Null starts Ray on this machine."""
    cluster: Annotated[Literal["auto", "slurm", "local", "debug"], run_key()] = "auto"
    """submitit's cluster; `auto` is slurm if this machine has srun, else local."""
    options: Annotated[dict[str, Any], run_key()] = Field(default_factory=dict)
    """submitit's parameters, such as {partition: gpu}."""


class TrackingConfig(Section):
    """Where loss curves go."""

    name: Annotated[Literal["mlflow", "none"], run_key()]
    """`mlflow`, or `none`."""
    uri: Annotated[Annotated[str, Field(min_length=1)] | None, run_key()] = None
    """MLflow's tracking URI. Null is sqlite:///mlflow.db in the working folder."""
    experiment: Annotated[str | None, run_key()] = None
    """MLflow's experiment. Null is the sweep's name."""
    system_metrics: Annotated[bool, run_key()] = True
    """Logs the machine's load with the sweep's run."""


class OriginConfig(Section):
    """The config of another trainer that the sweep was imported from."""

    dialect: Annotated[str, sweep_key()]
    """The trainer."""
    file: Annotated[str, sweep_key()]
    """The imported file."""
    rest: Annotated[str, sweep_key()] = ""
    """The keys that lrsweep does not have, as YAML: an export writes them back."""
    base: Annotated[str, sweep_key()] = ""
    """The whole file as YAML, if its own trainer trains the trials: only the tuned keys change in it."""


class SweepConfig(Section):
    """A whole sweep."""

    name: Annotated[str, Field(pattern=NAME), sweep_key()]
    """The sweep's name; its files are in outputs/NAME."""
    model: ModelConfig
    data: DataConfig
    finetune: FinetuneConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    training: TrainingConfig
    search: SearchConfig
    space: Annotated[dict[str, Any], sweep_key()]
    """The axes: the same tree as this config, with lists of choices or ranges as leaves."""
    pruner: PrunerConfig
    engine: EngineConfig
    executor: ExecutorConfig
    tracking: TrackingConfig
    origin: OriginConfig | None = None
    resume: Annotated[Literal["auto", "fresh"], run_key()] = "auto"
    """What happens to an earlier sweep of this name: `auto` resumes it, `fresh` renames it and starts over."""

    @model_validator(mode="after")
    def _one_rate_for_a_parameter(self) -> Self:
        if self.finetune.mode == "lora" and self.finetune.loraplus_lr_ratio is not None and self.optimizer.lr_groups:
            raise ValueError(
                "finetune: loraplus_lr_ratio and optimizer.lr_groups both give parameters rates of their own; use one "
                "of them (lr_groups: {lora_B: 16} is LoRA+ with the ratio 16)"
            )
        return self

    @model_validator(mode="after")
    def _routers_loss_is_the_models_own(self) -> Self:
        if self.model.output_router_logits and self.training.loss != "cross_entropy":
            raise ValueError(
                "model: output_router_logits=true adds to the model's own loss, which training.loss="
                f"{self.training.loss} replaces; set one of them back"
            )
        return self

    @model_validator(mode="after")
    def _trials_outlast_their_warmup(self) -> Self:
        training = self.training
        if self.lengths_searched:
            return self  # no trial follows the schedule of the horizon
        warmup = self.scheduler.warmup(training.schedule_steps)
        # A trial that is the whole run may warm up as long as the run does.
        if training.max_steps < min(2 * warmup, training.schedule_steps):
            raise ValueError(
                f"training: max_steps ({training.max_steps}) is too few for horizon ({training.horizon}): the warm-up "
                f"alone takes {warmup} steps, so no trial would train at its full learning rate; set "
                f"training.max_steps to {2 * warmup} or more, or shorten the warm-up (scheduler.warmup_ratio)"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_missing_origin(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        if tree.get("origin") is None:
            tree.pop("origin", None)
        return tree

    @property
    def lengths_searched(self) -> bool:
        """Whether each trial is a whole run of its own length: `training.horizon` is then only what to predict for."""
        searched = self.space.get("training")
        return isinstance(searched, Mapping) and "max_steps" in searched and "horizon" not in searched

    @property
    def redactor(self) -> Redactor:
        """Masks secrets, including the passwords in this config's URLs."""
        return Redactor.of_urls(self.search.storage, self.tracking.uri)

    def masked(self) -> dict[str, Any]:
        """The config as a plain tree with passwords and tokens masked."""
        tree: dict[str, Any] = self.redactor.masked(self.model_dump())
        return tree


def validate(tree: Mapping[str, Any]) -> SweepConfig:
    """The tree as a SweepConfig.

    Raises:
        InputError: The tree is invalid. The message names the first bad key, its value, the rule and the nearest name.
    """
    for key, value in flatten(tree).items():
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"{key}={value!r}: holds a NUL character, which no name has; remove it")
    try:
        return SweepConfig.model_validate(dict(tree))
    except ValidationError as fault:
        raise InputError(_one_line(fault)) from None


def replace(config: SweepConfig, changes: Mapping[str, Any]) -> SweepConfig:
    """The config with dotted keys set (`{"optimizer.lr": 1e-4}`), validated again. Raises InputError."""
    tree = config.model_dump()
    for key, value in changes.items():
        # The keys of a mapping are the user's own, and may have dots.
        mapping = next((key[: dot.start()] for dot in re.finditer(r"\.", key) if is_mapping(key[: dot.start()])), None)
        *parents, leaf = key.split(".") if mapping is None else [*mapping.split("."), key[len(mapping) + 1 :]]
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return validate(tree)


def keys() -> list[str]:
    """Every dotted key of the schema that holds a value (`optimizer.lr`), in order."""
    return [key for key, _ in leaves(SweepConfig)]


def is_text(key: str) -> bool:
    """Whether a dotted key of the config holds any text and nothing else, such as a path."""
    return any(hint is str or set(get_args(hint)) == {str, type(None)} for name, hint in _hints() if name == key)


def is_mapping(key: str) -> bool:
    """Whether a dotted key of the config holds a mapping, whose keys are the user's own."""
    return any(get_origin(hint) in (dict, Mapping) for name, hint in _hints() if name == key)


@cache
def _hints() -> tuple[tuple[str, Any], ...]:
    """Each dotted key of the schema with its type."""
    found: list[tuple[str, Any]] = []
    for section, owner in SweepConfig.model_fields.items():
        found.append((section, owner.annotation))
        kinds = [kind for kind in (owner.annotation, *get_args(owner.annotation)) if isinstance(kind, type)]
        for kind in kinds:
            if issubclass(kind, Section):
                found += [(f"{section}.{name}", leaf.annotation) for name, leaf in kind.model_fields.items()]
    return tuple(found)


def default_values() -> dict[str, Any]:
    """The default of every dotted key that has one."""
    found: dict[str, Any] = {}
    for name, section in SweepConfig.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            fields = section.annotation.model_fields
            found |= {
                f"{name}.{key}": field.get_default(call_default_factory=True)
                for key, field in fields.items()
                if not field.is_required()
            }
    return found


def key_facts(key: str) -> KeyFacts:
    """What a dotted key of the config affects."""
    return facts_of(SweepConfig, key)


def trial_part(config: SweepConfig, *, same_in_pack: bool = False) -> dict[str, dict[str, Any]]:
    """The keys that change what a trial measures, as {section: {key: value}}; sections without such a key are left out.

    Args:
        config: The trial's config.
        same_in_pack: Returns only the keys that all trials of a pack share.
    """
    found: dict[str, dict[str, Any]] = {}
    for section in TRIAL_SECTIONS:
        for name, value in getattr(config, section).model_dump(mode="json").items():
            facts = key_facts(f"{section}.{name}")
            if facts.scope == "trial" and (facts.in_pack == "same" or not same_in_pack):
                found.setdefault(section, {})[name] = value
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists and empty mappings are kept as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def did_you_mean(key: str) -> str:
    """A hint with the key that is called so elsewhere, or with the schema's nearest key; empty if there is none."""
    if elsewhere := meant(key):
        return elsewhere
    known = keys()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        near = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def _one_line(fault: ValidationError) -> str:
    error = fault.errors()[0]
    key = _key(error)
    if error["type"] == "extra_forbidden":
        key = ".".join(str(part) for part in error["loc"])
        return f"{key}: no such key{did_you_mean(key)}"
    if error["type"] == "missing":
        return f"{key}: missing; set {key}=..."
    if error["type"] == "string_pattern_mismatch":
        return f"{key}={error['input']!r}: letters, digits, '.', '_' and '-' only, starting with a letter or digit"
    rule = error["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    if error["type"] == "literal_error":
        # The other branches of a union, such as 'auto' or a number from 1 to 20.
        others = [other["msg"] for other in fault.errors()[1:] if _key(other) == key]
        rule = " or ".join([rule, *(text.removeprefix("Input should be ") for text in others)])
    if not key:
        return rule
    if isinstance(error["input"], Mapping):
        return f"{key}: {rule}"
    return f"{key}={error['input']!r}: {rule}"


def _key(error: ErrorDetails) -> str:
    """The dotted key of an error; union branches and validators add parts to its location that are not config keys."""
    return ".".join(str(part) for part in error["loc"] if re.fullmatch(r"[a-z_]+|\d+", str(part)))

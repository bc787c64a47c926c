"""`SweepResult`: what a sweep found, for notebooks and programs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsweep.analysis.lr_curve import BetterRate, SafeRange
from lrsweep.analysis.noise import Noise
from lrsweep.analysis.ranking import Candidate
from lrsweep.errors import InputError
from lrsweep.files.atomic import write_text
from lrsweep.files.metrics_log import read_metrics
from lrsweep.files.paths import SweepFolder, existing_sweep
from lrsweep.report.summary import read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from peft import LoraConfig
    from transformers import TrainingArguments


@dataclass(frozen=True)
class Trial:
    """A complete trial.

    Attributes:
        number: Its number.
        values: The searched keys' values, by dotted key.
        lr: Its learning rate.
        eval_loss: Its eval loss in nats per token, or `search.metric`; the mean over its seeds.
        losses: The same for each of its seeds.
        label: What its curve shows, such as `healthy`.
    """

    number: int
    values: Mapping[str, Any]
    lr: float
    eval_loss: float
    losses: tuple[float, ...]
    label: str


class SweepResult:
    """The result of a sweep, read from its folder. Get one from `lrsweep.sweep` or `lrsweep.load`.

    Args:
        folder: The sweep's folder.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._summary = read_summary(folder)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._summary.config.name

    @property
    def folder(self) -> Path:
        """The sweep's folder, `outputs/NAME`."""
        return self._folder.path

    @property
    def complete(self) -> bool:
        """Whether the sweep has run to its end."""
        return self._folder.concluded(len(self._summary.results))

    @property
    def best(self) -> Trial | None:
        """The recommended trial; None if no trial completed."""
        return self._trial(self._summary.verdict.recommended)

    @property
    def ties(self) -> tuple[Trial, ...]:
        """The trials that the seeds do not tell from the one with the lowest loss, with that one."""
        return tuple(trial for tie in self._summary.verdict.ties if (trial := self._trial(tie)))

    @property
    def safe_range(self) -> SafeRange | None:
        """The learning rates that are about as good as the best; None if they are not known."""
        return self._summary.verdict.safe_range

    @property
    def noise(self) -> Noise | None:
        """How much a loss varies from seed to seed; None if it was not measured."""
        return self._summary.verdict.noise

    @property
    def better_rate(self) -> BetterRate | None:
        """The rate that is likeliest to beat the lowest loss by more than `search.tolerance`; None if not known."""
        return self._summary.verdict.better_rate

    @property
    def inconclusive(self) -> str:
        """Why the sweep gives no clear answer; empty if it does."""
        return self._summary.verdict.inconclusive

    @property
    def trials(self) -> "DataFrame":
        """All finished trials: values, eval loss in nats per token (or `search.metric`), status, seed, label, ..."""
        from pandas import DataFrame

        objective = self._summary.config.search.objective
        rows = [
            {
                "trial": result.number,
                **result.trained,
                objective.metric: None if result.eval_loss is None else objective.value(result.eval_loss),
                "steps": result.step,
                "status": result.status,
                "role": result.role,
                "seed": result.config.training.seed,
                "label": self._summary.label(result.number),
                "reason": result.reason,
            }
            for result in self._summary.results
        ]
        return DataFrame(rows).set_index("trial") if rows else DataFrame()

    def curves(self, trial: int) -> "DataFrame":
        """A trial's loss, eval loss, learning rate and gradient norm, by step.

        Raises:
            InputError: There is no such trial.
        """
        from pandas import DataFrame

        numbers = [result.number for result in self._summary.results]
        if trial not in numbers:
            raise InputError(f"trial {trial!r}: no such trial (choices: {', '.join(map(str, numbers)) or 'none yet'})")
        return DataFrame(read_metrics(self._folder.trial(trial))).groupby("step").last()

    def figure(self, name: str = "loss_over_lr") -> "Figure":
        """A figure of the report.

        Args:
            name: `loss_over_lr`, `eval_curves`, `parallel_coordinates` or `importance`.

        Raises:
            InputError: There is no such figure, or the sweep has too little for it.
        """
        from lrsweep.report import figures

        drawn: dict[str, Callable[[], Figure | None]] = {
            "loss_over_lr": lambda: figures.loss_over_axis(self._summary),
            "eval_curves": lambda: figures.eval_curves(self._summary, self._folder),
            "parallel_coordinates": lambda: figures.parallel(self._summary),
            "importance": lambda: figures.importance(self._summary),
        }
        if name not in drawn:
            raise InputError(f"figure {name!r}: no such figure (choices: {', '.join(drawn)})")
        figure = drawn[name]() if self._summary.results else None
        if figure is None:
            raise InputError(f"figure {name!r}: needs complete trials on more axes than {self.name} has")
        return figure

    def to_training_arguments(self, **changes: Any) -> "TrainingArguments":
        """The best config as transformers' TrainingArguments.

        Args:
            changes: TrainingArguments that differ from the trial's, such as `output_dir` or `max_steps`.

        Raises:
            InputError: No trial completed, or TrainingArguments cannot express the config.
        """
        import transformers

        from lrsweep import dialects
        from lrsweep.training.model import resolve_dtype

        best = self._recommended()
        trainer = dialects.TRAINERS["transformers"]
        version = dialects.target_version(trainer, ".".join(transformers.__version__.split(".")[:2]))
        searched = dialects.tuned(self._summary.config, best.result.config) | set(best.result.values)
        arguments = dialects.tree(trainer, best.result.config, searched, version)
        if best.result.config.model.dtype == "auto":
            # The trials trained in what this machine supports, which a file for another machine cannot say.
            arguments.setdefault("bf16", str(resolve_dtype(best.result.config.model)) == "torch.bfloat16")
        return transformers.TrainingArguments(**{**arguments, **changes})

    def to_lora_config(self) -> "LoraConfig":
        """The best config's LoRA options as PEFT's LoraConfig.

        Raises:
            InputError: No trial completed, or the sweep does not train LoRA.
        """
        from lrsweep.training.model import lora_config

        finetune = self._recommended().result.config.finetune
        if finetune.mode != "lora":
            raise InputError(f"{self.name}: finetune.mode={finetune.mode} has no LoRA options")
        return lora_config(finetune)

    def export(self, to: str, *, base: str | Path | None = None, out: str | Path | None = None) -> str:
        """The best config for a trainer, as text: `lrsweep export NAME --to TO`.

        Args:
            to: `hydra`, `llamafactory`, `transformers`, `trl` or `axolotl`.
            base: Your own config file: the text is that file with only the tuned keys changed.
            out: A file to write as well.

        Raises:
            InputError: No trial completed, or the trainer cannot express the config.
        """
        from lrsweep import dialects

        text = dialects.export(self._summary, to, None if base is None else Path(base))
        if out is not None:
            write_text(Path(out), text)
        return text

    def __str__(self) -> str:
        from lrsweep.report.text import sentences

        return "\n".join(sentences(self._summary))

    def __repr__(self) -> str:
        best, objective = self.best, self._summary.config.search.objective
        shown = (
            "no trial completed" if best is None else f"best {dict(best.values)}, {objective.name} {best.eval_loss:.4f}"
        )
        return f"<SweepResult {self.name}: {shown}>"

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        from html import escape

        paragraphs = "".join(f"<p>{escape(line)}</p>" for line in str(self).split("\n"))
        return f"{paragraphs}{self.trials.to_html(escape=True, float_format=lambda value: f'{value:.5g}', na_rep='')}"

    def _recommended(self) -> Candidate:
        best = self._summary.verdict.recommended
        if best is None:
            raise InputError(f"{self.name}: no trial completed, so there is no best config")
        return best

    def _trial(self, candidate: Candidate | None) -> Trial | None:
        if candidate is None:
            return None
        result, objective = candidate.result, self._summary.config.search.objective
        return Trial(
            result.number,
            result.trained,
            result.lr,
            objective.value(candidate.mean),
            tuple(map(objective.value, candidate.losses)),
            self._summary.label(result.number),
        )


def load(sweep: str | Path) -> SweepResult:
    """The result of a sweep that has run, is running, or was interrupted.

    Args:
        sweep: The sweep's name, or the path of its folder.

    Raises:
        InputError: There is no such sweep.
        StorageError: No trial has ended yet, or the files are damaged.
    """
    return SweepResult(existing_sweep(str(sweep)))


def training_arguments(sweep: str | Path | SweepResult, **changes: Any) -> "TrainingArguments":
    """The best config of a sweep as transformers' TrainingArguments.

    Args:
        sweep: The sweep's name, the path of its folder, or its result.
        changes: TrainingArguments that differ from the trial's, such as `output_dir` or `max_steps`.

    Raises:
        InputError: There is no such sweep, no trial completed, or TrainingArguments cannot express the config.
        StorageError: No trial has ended yet, or the files are damaged.
    """
    result = sweep if isinstance(sweep, SweepResult) else load(sweep)
    return result.to_training_arguments(**changes)

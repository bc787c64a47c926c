"""The summary of a sweep, and its file summary.json, which the report, the export and other programs read."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lrsweep import __version__
from lrsweep.analysis.diagnosis import Advice, Curve, Diagnosis, curve, diagnose, remedies
from lrsweep.analysis.diagnosis.trial_remedies import fitted
from lrsweep.analysis.horizon import LongerRun, longer_run
from lrsweep.analysis.priors import Factor, Prior
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import Verdict, judge
from lrsweep.config.schema import SweepConfig, flatten, replace, validate
from lrsweep.config.search_space import LR, Axis, trial_config, values
from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import write_text
from lrsweep.files.metrics_log import read_metrics
from lrsweep.files.paths import SweepFolder
from lrsweep.files.row_losses import RowLosses, read_row_losses
from lrsweep.formatting import format_value
from lrsweep.search.records import Record
from lrsweep.tracking import DatasetInfo


@dataclass(frozen=True)
class Links:
    """How to see the runs in MLflow.

    Attributes:
        ui_command: The command that starts MLflow's UI; empty without tracking.
        compare_url: The URL of the page that compares the trials; empty without tracking.
    """

    ui_command: str
    compare_url: str


@dataclass(frozen=True)
class About:
    """The facts about a sweep besides its trials.

    Attributes:
        dataset: The sweep's data.
        links: How to see the runs in MLflow.
        prior: The learning rate that rules of thumb give; None if they do not apply.
        searched: Which search method lrsweep chose and why; empty unless `search.method` is `auto`.
        seconds: Seconds spent training, over all runs of the sweep.
        importances: Each axis's share in the differences of the losses.
        hardware: What the workers trained on, such as `AMD EPYC, 2 cores, AVX2`; empty if it is not known.
        ended: When the last trial ended, such as `2026-05-31T18:02`; empty if none has.
        command: The command that ran the sweep, with passwords masked; empty if it is not known.
    """

    dataset: DatasetInfo
    links: Links
    prior: Prior | None = None
    searched: str = ""
    seconds: float = 0.0
    importances: Mapping[str, float] = field(default_factory=dict)
    hardware: str = ""
    ended: str = ""
    command: str = ""


# The version of summary.json's schema, docs/summary.schema.json. It grows if a key goes, or changes its meaning.
SCHEMA = 1
# Labels that compare a trial with better ones.
_WORSE = ("too_low", "too_high")


@dataclass(frozen=True)
class Summary:
    """A sweep as it is now.

    Attributes:
        config: The sweep's config.
        results: The finished trials, by number.
        verdict: Their ranking.
        base_loss: The eval loss before training, in nats per token; None if it was not measured.
        diagnoses: The diagnosis of each trial's curve, by number.
        about: The facts about the sweep besides its trials.
        longer_run: The learning rate for a run that is longer than the trials; None if none is asked for, or known.
    """

    config: SweepConfig
    results: tuple[Result, ...]
    verdict: Verdict
    base_loss: float | None
    diagnoses: Mapping[int, Diagnosis]
    about: About
    longer_run: LongerRun | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """The searched keys."""
        return tuple(self.results[0].values) if self.results else ()

    def label(self, number: int) -> str:
        """The label of a trial's diagnosis, such as `too_high`."""
        return self.diagnoses[number].label if number in self.diagnoses else "unknown"


def summarise(
    config: SweepConfig, axes: Sequence[Axis], records: Sequence[Record], folder: SweepFolder, about: About
) -> Summary:
    """Ranks and diagnoses the finished trials, and writes summary.json.

    Args:
        config: The sweep's config.
        axes: The study's axes, including the rates that extensions have added.
        records: The finished trials.
        folder: The sweep's folder, with the trials' metrics.
        about: The facts about the sweep besides its trials.

    Raises:
        StorageError: The disk is full or fails.
    """
    rows = {record.number: read_metrics(folder.trial(record.number)) for record in records}
    results = tuple(
        _result(config, axes, record, rows[record.number], read_row_losses(folder.trial(record.number)))
        for record in records
    )
    firsts = (rows[result.number][:1] for result in results)
    score = config.search.objective.score
    base_loss = next((score(first[0]) for first in firsts if first and first[0]["step"] == 0), None)
    verdict = judge(results, base_loss)
    longer = longer_run(config, results, verdict, base_loss)
    summary = Summary(config, results, verdict, base_loss, _diagnoses(results, rows, verdict), about, longer)
    write_text(folder.summary, json.dumps(_to_json(summary), indent=1) + "\n")
    return summary


def _result(
    config: SweepConfig,
    axes: Sequence[Axis],
    record: Record,
    rows: Sequence[Mapping[str, float]],
    row_losses: RowLosses | None,
) -> Result:
    spec = record.spec
    try:
        own = trial_config(config, axes, spec.params, spec.overrides)
    except InputError:
        own = config  # its values contradict each other, which is the reason why it failed
    return Result(
        record.number,
        values(axes, spec.params),
        own,
        record.status,
        record.step,
        record.eval_loss,
        record.reason,
        spec.role,
        spec.overrides,
        spec.of,
        tuple(
            (int(row["step"]), score)
            for row in rows
            if row["step"] > 0 and (score := config.search.objective.score(row)) is not None
        ),
        row_losses,
    )


def _diagnoses(
    results: Sequence[Result], rows: Mapping[int, Sequence[Mapping[str, float]]], verdict: Verdict
) -> dict[int, Diagnosis]:
    """Each trial's diagnosis, compared with the trials of the same length, schedule, batch size and loss.

    A trial as good as the best, or recommended, is not called worse than others; with another seed neither.
    """
    good = {candidate.result.number for candidate in (*verdict.ties, verdict.recommended) if candidate is not None}
    curves = {r.number: curve(rows[r.number], r.config.optimizer.weight_decay) for r in results}
    alike: dict[tuple[int | str, ...], list[Result]] = {}
    for result in results:
        training = result.config.training
        batch = training.batch_size * training.gradient_accumulation_steps
        alike.setdefault((training.max_steps, training.schedule_steps, batch, training.loss), []).append(result)
    found: dict[int, Diagnosis] = {}
    for group in alike.values():
        for result in group:
            others = [curves[other.number] for other in group if other is not result]
            diagnosis = diagnose(curves[result.number], others)
            first = result.of if result.role == "replicate" else result.number
            if diagnosis.label in _WORSE and first in good:
                diagnosis = Diagnosis("healthy", {"reason": "its final loss is among the best of the sweep"})
            elif verdict.recommended is not None:
                own = curves[result.number]
                diagnosis = _on_its_side(diagnosis, own, result, verdict.recommended.result)
            found[result.number] = dataclasses.replace(diagnosis, advice=fitted(diagnosis.advice, result.config))
    return found


def _on_its_side(diagnosis: Diagnosis, own: Curve, result: Result, best: Result) -> Diagnosis:
    """The diagnosis, unless it calls a rate above the recommended one too low, or one below it too high.

    A short curve by itself may look so. The other axes must have the same values.
    """
    same = {**result.values, LR: None} == {**best.values, LR: None}
    if not same or diagnosis.label != ("too_low" if result.lr > best.lr else "too_high") or result.lr == best.lr:
        return diagnosis
    if diagnosis.label == "too_low":
        reason = f"it falls less than with the lower rate {format_value(best.lr)}"
        return Diagnosis("too_high", {"reason": reason}, remedies.lower_lr(own))
    reason = f"the higher rate {format_value(best.lr)} does better, so the rate is not what makes its loss rise"
    return Diagnosis("unknown", {"reason": reason})


def read_summary(folder: SweepFolder) -> Summary:
    """Reads summary.json. Raises StorageError if it is missing or damaged."""
    try:
        tree = json.loads(folder.summary.read_text(encoding="utf-8"))
        config = validate(tree["config"])
        diagnoses = {trial["number"]: _diagnosis(trial.pop("diagnosis")) for trial in tree["trials"]}
        results = tuple(
            Result(
                **{**trial, "config": replace(config, trial["config"])},
                rows=read_row_losses(folder.trial(trial["number"])),
            )
            for trial in tree["trials"]
        )
        prior = tree["prior"] and Prior(tree["prior"]["lr"], tuple(Factor(**f) for f in tree["prior"]["factors"]))
        about = About(
            DatasetInfo(**tree["dataset"]),
            Links(**tree["links"]),
            prior,
            tree["searched"],
            tree["seconds"],
            tree["importances"],
            # Summaries of earlier versions do not have these.
            tree.get("hardware", ""),
            tree.get("ended", ""),
            tree.get("command", ""),
        )
        base_loss = None if tree["base_loss"] is None else float(tree["base_loss"])
        verdict = judge(results, base_loss)
        longer = longer_run(config, results, verdict, base_loss)
        return Summary(config, results, verdict, base_loss, diagnoses, about, longer)
    except FileNotFoundError:
        raise StorageError(f"{folder.summary}: does not exist yet; it is written when the sweep ends") from None
    except OSError as fault:
        raise StorageError(f"{folder.summary}: cannot be read: {fault.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as fault:
        raise StorageError(f"{folder.summary}: damaged ({fault}); run the sweep again to rebuild it") from None


def _diagnosis(tree: Mapping[str, Any]) -> Diagnosis:
    advice = tuple(Advice(**one) for one in tree["advice"])
    # Summaries of earlier versions have no confidence.
    return Diagnosis(tree["label"], tree["evidence"], advice, tree.get("confidence", 1.0))


def _to_json(summary: Summary) -> Mapping[str, Any]:
    verdict, about = summary.verdict, summary.about
    best = verdict.recommended
    return {
        "schema": SCHEMA,
        "name": summary.config.name,
        "lrsweep": __version__,
        "best": None
        if best is None
        else {
            "trial": best.result.number,
            "values": best.result.values,
            "eval_loss": best.mean,
            "metric": summary.config.search.metric,
            "value": summary.config.search.objective.value(best.mean),
            "seeds": len(best.losses),
            "safe_lr": verdict.safe_range and [verdict.safe_range.low, verdict.safe_range.high],
            "safe_tolerance": verdict.safe_range and verdict.safe_range.tolerance,
            "given_up": verdict.given_up,
        },
        "lowest": verdict.ranking[0].number if verdict.ranking else None,
        "ties": [candidate.result.number for candidate in verdict.ties],
        "rivals": [
            {
                "trial": rival.candidate.result.number,
                "difference": rival.difference,
                "margin": rival.margin,
                "tied": rival.tied if verdict.noise else None,
            }
            for rival in verdict.rivals
        ],
        "noise": verdict.noise and asdict(verdict.noise),
        "row_noise": verdict.row_noise and asdict(verdict.row_noise),
        "improvement": verdict.improvement,
        "basin_centre": verdict.lr_curve and verdict.lr_curve.centre,
        "better_rate": verdict.better_rate and asdict(verdict.better_rate),
        "inconclusive": verdict.inconclusive,
        "edges": [asdict(edge) for edge in verdict.edges],
        "longer_run": summary.longer_run and asdict(summary.longer_run),
        "base_loss": summary.base_loss,
        "dataset": asdict(about.dataset),
        "links": asdict(about.links),
        "prior": about.prior and asdict(about.prior),
        "searched": about.searched,
        "seconds": about.seconds,
        "importances": about.importances,
        "hardware": about.hardware,
        "ended": about.ended,
        "command": about.command,
        "trials": [
            {
                **{key: value for key, value in vars(result).items() if key != "rows"},
                "config": _changes(summary.config, result.config),
                "diagnosis": asdict(summary.diagnoses[result.number]),
            }
            for result in summary.results
        ],
        "config": summary.config.masked(),
    }


def _changes(base: SweepConfig, trial: SweepConfig) -> dict[str, Any]:
    """The dotted keys whose values in a trial's config differ from the sweep's, with the trial's values."""
    before = flatten(base.model_dump())
    return {key: value for key, value in flatten(trial.model_dump()).items() if before.get(key) != value}

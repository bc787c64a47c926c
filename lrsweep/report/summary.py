"""The summary of a sweep: summary.json, which the report, the export and other programs read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrsweep import __version__, outputs
from lrsweep.config import SweepConfig, flatten, replace, validate
from lrsweep.errors import InputError, StorageError
from lrsweep.outputs import SweepFolder
from lrsweep.space import Axis, trial_config, values
from lrsweep.study import Record
from lrsweep.tracking import DatasetInfo
from lrsweep.verdict import Result, Verdict, judge


@dataclass(frozen=True)
class Links:
    """How to look at the runs in MLflow: the command that starts its UI, and the page there. Empty without tracking."""

    ui_command: str
    compare_url: str


@dataclass(frozen=True)
class Summary:
    """A sweep as it stands. `base_loss` is the eval loss before any training, in nats a token."""

    config: SweepConfig
    results: tuple[Result, ...]
    verdict: Verdict
    dataset: DatasetInfo
    base_loss: float | None
    links: Links

    @property
    def axes(self) -> tuple[str, ...]:
        """The searched keys."""
        return tuple(self.results[0].values) if self.results else ()


def summarise(
    config: SweepConfig, axes: Sequence[Axis], records: Sequence[Record], folder: SweepFolder, dataset: DatasetInfo,
    links: Links,
) -> Summary:  # fmt: skip
    """Gathers the finished trials, judges them and writes summary.json."""
    results = tuple(
        Result(
            record.number, values(axes, record.params), trial_config(config, axes, record.params),
            record.status, record.step, record.eval_loss, record.reason,
        )
        for record in records
    )  # fmt: skip
    firsts = (outputs.read_metrics(folder.trial(result.number))[:1] for result in results)
    base_loss = next((rows[0].get("eval_loss") for rows in firsts if rows and rows[0]["step"] == 0), None)
    summary = Summary(config, results, judge(results), dataset, base_loss, links)
    outputs.write(folder.summary, json.dumps(_to_json(summary), indent=1) + "\n")
    return summary


def read_summary(folder: SweepFolder) -> Summary:
    """The summary as last written. Raises StorageError if it cannot be read."""
    try:
        tree = json.loads(folder.summary.read_text(encoding="utf-8"))
        config = validate(tree["config"])
        results = tuple(Result(**{**trial, "config": replace(config, trial["config"])}) for trial in tree["trials"])
        return Summary(
            config, results, judge(results), DatasetInfo(**tree["dataset"]), tree["base_loss"], Links(**tree["links"])
        )
    except FileNotFoundError:
        raise StorageError(f"{folder.summary}: not there yet; it is written when the sweep ends") from None
    except (ValueError, KeyError, TypeError, InputError) as fault:
        raise StorageError(f"{folder.summary}: damaged ({fault}); run the sweep again to have it made anew") from None


def _to_json(summary: Summary) -> Mapping[str, Any]:
    best = summary.verdict.best
    return {
        "name": summary.config.name,
        "lrsweep": __version__,
        "best": None if best is None else {"trial": best.number, "values": best.values, "eval_loss": best.eval_loss},
        "edges": [asdict(edge) for edge in summary.verdict.edges],
        "base_loss": summary.base_loss,
        "dataset": asdict(summary.dataset),
        "links": asdict(summary.links),
        "trials": [{**vars(result), "config": _changes(summary.config, result.config)} for result in summary.results],
        "config": outputs.masked(summary.config),
    }


def _changes(base: SweepConfig, trial: SweepConfig) -> dict[str, Any]:
    """The dotted keys in which a trial's config differs from the sweep's."""
    before = flatten(base.model_dump())
    return {key: value for key, value in flatten(trial.model_dump()).items() if before.get(key) != value}

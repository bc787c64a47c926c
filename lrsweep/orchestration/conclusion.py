"""What a sweep leaves at its end: report.html, the folder best/, and the result in MLflow."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from lrsweep import dialects
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import Verdict
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_value
from lrsweep.report.certainty import chosen_values
from lrsweep.report.markdown import sweep_description, trial_description
from lrsweep.report.summary import Summary
from lrsweep.report.text import trainer
from lrsweep.tracking import Tracker


def conclude(summary: Summary, folder: SweepFolder) -> None:
    """Writes report.html, and into best/ the best config, in every dialect that can express it, with its adapter.

    Args:
        summary: The finished sweep.
        folder: The sweep's folder.

    Raises:
        StorageError: The disk is full or fails.
    """
    # The figures' library takes half a second to import, which the start of a sweep need not wait for.
    from lrsweep.report.page import write_page

    best = summary.verdict.best
    config = ""
    if best is not None:
        # The user's trainer may not be able to express it.
        with contextlib.suppress(InputError):
            config = dialects.export(summary, trainer(summary))
    write_page(summary, folder, config)
    if best is None:
        return
    for dialect in dialects.DIALECTS:
        file = "recommended.yaml" if dialect == "hydra" else f"{dialect}.yaml"
        with contextlib.suppress(InputError):
            write_text(folder.best / file, dialects.export(summary, dialect))
    adapter = folder.trial(best.number) / "adapter"
    if adapter.is_dir():
        with disk_faults(folder.best):
            shutil.rmtree(folder.best / "adapter", ignore_errors=True)
            shutil.copytree(adapter, folder.best / "adapter")


def _artifacts(folder: SweepFolder) -> list[Path]:
    """The existing files to attach to MLflow's parent run."""
    files = [folder.config, folder.summary, folder.report, folder.best]
    return [path for path in [*files, *sorted(folder.path.glob("*.png"))] if path.exists()]


def finish_tracking(tracker: Tracker, summary: Summary, folder: SweepFolder) -> bool:
    """Sends the tracker the result, and marks the sweep as complete if the tracker has received everything.

    Args:
        tracker: The tracker.
        summary: The finished sweep.
        folder: The sweep's folder.

    Returns:
        Whether the tracker has received everything.
    """
    places = {result.number: str(place) for place, result in enumerate(summary.verdict.ranking, start=1)}
    tracker.label({result.number: _trial_tags(summary, result, places) for result in summary.results})
    tracker.finish(
        "complete" if summary.verdict.recommended else "failed",
        _result_metrics(summary),
        _artifacts(folder),
        {**_result_tags(summary.verdict), "description": sweep_description(summary)},
    )
    if tracker.unsent:
        return False
    folder.conclude(len(summary.results))
    return True


def _trial_tags(summary: Summary, result: Result, places: Mapping[int, str]) -> dict[str, str]:
    """What a trial's run says about it in the end. Runs that differ in their seed only have the same `repeats`."""
    first = result.number if result.of is None or result.role != "replicate" else result.of
    tags = {
        "diagnosis": summary.label(result.number),
        "description": trial_description(summary, result),
        "seed": str(result.config.training.seed),
        "repeats": str(first),
    }
    return tags | ({"rank": places[first]} if first in places else {})


def _result_metrics(summary: Summary) -> dict[str, float]:
    """The result in numbers."""
    verdict, objective = summary.verdict, summary.config.search.objective
    best = verdict.recommended
    if best is None:
        return {}
    found = {
        f"best_{objective.key}": objective.value(best.mean),
        "best_trial": best.result.number,
        "best_lr": best.result.lr,
        "ties": len(verdict.ties),
    }
    return found | ({} if verdict.noise is None else {"noise": verdict.noise.deviation})


def _result_tags(verdict: Verdict) -> dict[str, str]:
    """What MLflow's run of the sweep says about the result."""
    at_edge = ", ".join(f"{edge.key}={format_value(edge.value)} ({edge.side} tried)" for edge in verdict.edges)
    found = {"edges": at_edge or "none", "inconclusive": verdict.inconclusive or "no"}
    if verdict.best is not None:
        chosen = chosen_values(verdict.best)
        found["recommended"] = ", ".join(f"{key}={format_value(value)}" for key, value in chosen.items())
        found["tied_trials"] = ", ".join(str(tie.result.number) for tie in verdict.ties)
    if verdict.safe_range is not None:
        found["safe_lr"] = f"{format_value(verdict.safe_range.low)} to {format_value(verdict.safe_range.high)}"
    return found

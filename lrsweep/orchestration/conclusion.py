"""What a sweep leaves at its end: report.html, the folder best/, and the result in MLflow."""

import contextlib
import shutil
from pathlib import Path

from lrsweep import dialects
from lrsweep.analysis.verdict import Verdict
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_value
from lrsweep.report.summary import Summary
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

    write_page(summary, folder)
    best = summary.verdict.best
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
    tracker.label({number: diagnosis.label for number, diagnosis in summary.diagnoses.items()})
    best, objective = summary.verdict.recommended, summary.config.search.objective
    tracker.finish(
        "complete" if best else "failed",
        {} if best is None else {f"best_{objective.key}": objective.value(best.mean), "best_trial": best.result.number},
        _artifacts(folder),
        _result_tags(summary.verdict),
    )
    if tracker.unsent:
        return False
    folder.conclude(len(summary.results))
    return True


def _result_tags(verdict: Verdict) -> dict[str, str]:
    """What MLflow's run of the sweep says about the result."""
    at_edge = ", ".join(f"{edge.key}={format_value(edge.value)} ({edge.side} tried)" for edge in verdict.edges)
    return {"edges": at_edge or "none", "inconclusive": verdict.inconclusive or "no"}

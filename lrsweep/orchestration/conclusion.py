"""The files that a sweep writes at its end: report.html and the folder best/."""

import contextlib
import shutil
from pathlib import Path

from lrsweep import dialects
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.report.page import write_page
from lrsweep.report.summary import Summary


def conclude(summary: Summary, folder: SweepFolder) -> None:
    """Writes report.html, and into best/ the best config, in every dialect that can express it, with its adapter.

    Args:
        summary: The finished sweep.
        folder: The sweep's folder.

    Raises:
        StorageError: The disk is full or fails.
    """
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


def artifacts(folder: SweepFolder) -> list[Path]:
    """The existing files to attach to MLflow's parent run."""
    files = [folder.config, folder.summary, folder.report, folder.best]
    return [path for path in [*files, *sorted(folder.path.glob("*.png"))] if path.exists()]

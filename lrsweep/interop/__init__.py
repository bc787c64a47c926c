"""The best config in other programs' dialects, one file a dialect."""

from lrsweep.errors import InputError
from lrsweep.interop import hydra, transformers
from lrsweep.report.summary import Summary

# A dialect is a function from the summary to the text of a config file.
DIALECTS = {"hydra": hydra.export, "transformers": transformers.export}


def export(summary: Summary, dialect: str) -> str:
    """The best config of a sweep in `dialect`. Raises InputError for an unknown one, or where there is no best."""
    if dialect not in DIALECTS:
        raise InputError(f"--to {dialect}: no such format (choices: {', '.join(DIALECTS)})")
    if summary.verdict.best is None:
        raise InputError(f"{summary.config.name}: no trial completed, so there is no best to export")
    return DIALECTS[dialect](summary)

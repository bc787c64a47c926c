"""`lrsweep report NAME`: shows a sweep's result and writes its report.html again."""

from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import InputError


def run(argv: Sequence[str]) -> int:
    """Prints the table and writes the report. Raises LrsweepError."""
    parser = ArgumentParser("report", "show a sweep's result and write its report.html again")
    parser.add_sweep_name()
    arguments = parser.parse_args(argv)

    from lrsweep.files.paths import existing_sweep
    from lrsweep.orchestration.conclusion import conclude
    from lrsweep.report.summary import read_summary
    from lrsweep.report.terminal import Terminal
    from lrsweep.report.text import print_summary

    folder = existing_sweep(arguments.name)
    summary = read_summary(folder)
    if not summary.results:
        raise InputError(f"{arguments.name}: no trial has ended yet; resume the sweep")
    conclude(summary, folder)
    if not folder.concluded(len(summary.results)):
        print(
            f"{arguments.name} is not complete: {len(summary.results)} trials have ended so far; if it does not run, "
            "the same lrsweep +sweep command resumes it"
        )
    print_summary(Terminal(), summary, folder)
    return 0

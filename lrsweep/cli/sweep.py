"""`lrsweep +sweep=NAME [key=value ...]`: runs a sweep, or resumes it."""

import shlex
from collections.abc import Sequence

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.libraries import quiet


def run(argv: Sequence[str]) -> int:
    """Runs the sweep that the overrides in `argv` describe. Raises LrsweepError."""
    config = sweep_config(argv)
    quiet()

    from lrsweep.files.paths import SweepFolder
    from lrsweep.files.symlinks import refuse_symlinks
    from lrsweep.orchestration.interrupt import InterruptedSweepError
    from lrsweep.orchestration.run_sweep import run_sweep
    from lrsweep.report.screen import open_screen
    from lrsweep.report.terminal import Terminal
    from lrsweep.report.text import print_summary

    refuse_symlinks(SweepFolder(config.name).path)
    console = Terminal()
    # resume=fresh would start over again.
    command = shlex.join(["lrsweep", *(word for word in argv if word != "resume=fresh")])
    try:
        summary = run_sweep(config, open_screen(console), config.redactor.mask(command))
    except InterruptedSweepError as interrupted:
        interrupted.args = (f"interrupted; resume with: {command}",)
        raise
    print_summary(console, summary, SweepFolder(config.name))
    return 0

"""The command line: a subcommand if the first argument is one; otherwise Hydra's overrides or flags, for a sweep."""

import importlib
import os
import sys
from collections.abc import Sequence

from lrsweep import __version__
from lrsweep.errors import InputError, LrsweepError
from lrsweep.files.redaction import mask

# The module of each subcommand. It has a function `run(argv) -> exit code`.
COMMANDS = {
    "export": "lrsweep.cli.export",
    "import": "lrsweep.cli.import_config",
    "list": "lrsweep.cli.list_sweeps",
    "new": "lrsweep.cli.new",
    "report": "lrsweep.cli.report",
    "diagnose": "lrsweep.cli.diagnose",
    "find-lr": "lrsweep.cli.find_lr",
    "sync": "lrsweep.cli.sync",
    "ui": "lrsweep.cli.ui",
    "doctor": "lrsweep.cli.doctor",
    "completion": "lrsweep.cli.completion",
    "help": "lrsweep.cli.help",
}


def main() -> None:
    """Runs the command line and exits with its code; an error is one line on stderr."""
    # Figures are files. A notebook's `!lrsweep` would inherit a backend that works in its own process only.
    os.environ["MPLBACKEND"] = "agg"
    try:
        code = run(sys.argv[1:])
    except LrsweepError as fault:
        print(mask(f"lrsweep: {' '.join(str(fault).splitlines())}"), file=sys.stderr)
        code = fault.exit_code
    except KeyboardInterrupt:
        print("lrsweep: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of the output is gone (as in `lrsweep ... | head`); the rest is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Runs the command in `argv`; returns the exit code. Raises LrsweepError."""
    if argv and argv[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[argv[0]]).run(argv[1:]))
    if argv == ["--version"]:
        print(f"lrsweep {__version__}")
        return 0
    from lrsweep.config import hydra_compose

    if any(argument.startswith("-") and "=" not in argument for argument in argv):
        hydra_compose.hydra_flags(argv)
        return 0
    if not argv:
        raise InputError(
            f"choose a sweep: lrsweep +sweep=NAME (choices: {', '.join(hydra_compose.sweep_names())}); more: --help"
        )
    if "=" not in argv[0]:
        raise InputError(
            f"{argv[0]}: no such command (choices: {', '.join(COMMANDS)}); a sweep is run with +sweep=NAME"
        )
    from lrsweep.cli import sweep

    return sweep.run(argv)

"""The command line: a subcommand if the first argument is one; otherwise Hydra's overrides or flags, for a sweep."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from lrsweep import __version__
from lrsweep.errors import InputError, LrsweepError, StorageError, UnexpectedError
from lrsweep.files.logs import stray_errors_kept, unexpected
from lrsweep.files.redaction import mask
from lrsweep.formatting import printable

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
    """Runs the command line and exits with its code; an error is one line on stderr, whatever it is."""
    # Figures are files. A notebook's `!lrsweep` would inherit a backend that works in its own process only.
    os.environ["MPLBACKEND"] = "agg"
    _open_standard_streams()
    with stray_errors_kept():
        code = _exit_code(sys.argv[1:])
    sys.exit(code)


def _exit_code(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, after one line on stderr if it is an error's."""
    try:
        _check_encoding(argv)
        code = run(argv)
        _flush_stdout()
        return code
    except BrokenPipeError:
        # The reader of the output is gone (as in `lrsweep ... | head`); the rest is discarded.
        _discard_stdout()
        return 0
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except LrsweepError as fault:
        return _failed(fault)
    except Exception as fault:
        return _failed(unexpected(fault, " ".join(["lrsweep", *argv])[:200]))


def _check_encoding(argv: Sequence[str]) -> None:
    """Refuses names that not all libraries would write in the same way.

    Python encodes a file's name by the locale, SQLite always as UTF-8: they would be two files.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(word.isascii() for word in (os.getcwd(), *argv)):
        raise InputError(f"names that are not ASCII need UTF-8, and Python uses {encoding} here; set PYTHONUTF8=1")


def _flush_stdout() -> None:
    """Writes what Python has kept back, where an error can still be told. Raises StorageError, or BrokenPipeError."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as fault:
        raise StorageError(f"stdout: {fault.strerror}") from None


def _failed(fault: LrsweepError) -> int:
    """Prints an error's line, and its traceback if LRSWEEP_DEBUG asks for it; returns its exit code."""
    if isinstance(fault, UnexpectedError) and os.environ.get("LRSWEEP_DEBUG", "0") not in ("", "0"):
        print(printable(fault.traceback), end="", file=sys.stderr)
    _say(str(fault))
    try:
        _flush_stdout()
    except (OSError, StorageError):
        # Python would print an error of its own at the end.
        _discard_stdout()
    return fault.exit_code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(printable(mask(f"lrsweep: {' '.join(text.splitlines())}")), file=sys.stderr)


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Opens closed standard streams on /dev/null: else the next file, such as a database, would become one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 shows what it lacks escaped.
            stream.reconfigure(errors="backslashreplace")


def run(argv: Sequence[str]) -> int:
    """Runs the command in `argv`; returns the exit code. Raises LrsweepError."""
    if argv and argv[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[argv[0]]).run(argv[1:]))
    if argv == ["--version"]:
        print(f"lrsweep {__version__}")
        return 0
    if list(argv) in (["--help"], ["-h"]):
        return run(["help"])
    from lrsweep.config import hydra_compose

    if any(argument.startswith("-") for argument in argv):
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

"""`lrsweep help [COMMAND]`: the help of lrsweep, or of one of its commands."""

import importlib
from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.files.redaction import mask


def run(argv: Sequence[str]) -> int:
    """Prints the help. Raises InputError if there is no such command."""
    from lrsweep.cli.main import COMMANDS

    parser = ArgumentParser("help", "show the help of lrsweep, or of one of its commands")
    parser.add_argument("command", nargs="?", choices=sorted(COMMANDS), metavar="COMMAND")
    command = parser.parse_args(argv).command
    if command is not None:
        # It prints its help and exits.
        return int(importlib.import_module(COMMANDS[command]).run(["--help"]))
    from lrsweep.config.help_text import default_config, help_text

    print(mask(help_text(default_config())), end="")
    return 0

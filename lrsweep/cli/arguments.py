"""The arguments of subcommands: argparse, but an invalid argument is an InputError, which is one line."""

import argparse
from typing import NoReturn

from lrsweep.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """A subcommand's parser.

    Args:
        command: The subcommand.
        description: What it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"lrsweep {command}", description=description)

    def error(self, message: str) -> NoReturn:
        """Raises InputError with argparse's message."""
        raise InputError(f"{self.prog.removeprefix('lrsweep ')}: {message}; see {self.prog} --help")

    def add_sweep_name(self) -> None:
        """Adds the argument NAME."""
        self.add_argument("name", metavar="NAME", help="the sweep: its folder under outputs/")

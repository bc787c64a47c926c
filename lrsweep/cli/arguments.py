"""The arguments of subcommands: argparse, but an invalid argument is an InputError, which is one line."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from lrsweep.errors import InputError

# What file systems allow for one part of a path, in bytes.
_LONGEST_NAME = 255


def file_path(text: str) -> Path:
    """An argument that names a file, to read or to write. argparse reports the ArgumentTypeError."""
    path = Path(text)
    if not text or not path.name or path.name == "..":
        raise argparse.ArgumentTypeError(f"{text!r} is no file's name")
    if "\0" in text or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no file's name: it is too long or holds a NUL")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a device or a pipe, not a file")
    return path


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

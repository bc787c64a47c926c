"""A sweep writes under outputs/NAME only; a symlink there could lead to other files."""

import os
from pathlib import Path

from lrsweep.errors import InputError, StorageError


def refuse_symlinks(folder: Path) -> None:
    """Checks a sweep's folder, the folder above it and everything in it.

    The output of the user's own trainer, trials/NNNN/run, is not checked.

    Args:
        folder: The sweep's folder.

    Raises:
        InputError: There is a symlink.
        StorageError: There is a file in place of a folder.
    """
    for path in (folder.parent, folder):
        if path.is_symlink():
            raise _refusal(path)
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path}: is a file, but sweeps need a folder of that name; move the file away")
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (Path(place) / name).is_symlink():
                raise _refusal(Path(place) / name)
        if Path(place).parent.parent == folder and Path(place).parent.name == "trials" and "run" in folders:
            folders.remove("run")


def _refusal(path: Path) -> InputError:
    return InputError(
        f"{path}: is a symlink to {os.readlink(path)}, but a sweep writes only inside its own folder; replace it with "
        "a real folder"
    )

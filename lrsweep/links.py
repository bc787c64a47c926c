"""A sweep writes under outputs/NAME and nowhere else: a link there could lead to anybody's files."""

import os
from pathlib import Path

from lrsweep.errors import InputError, StorageError


def check_place(folder: Path) -> None:
    """Raises InputError for a link on the way to a sweep's folder or in it, StorageError for a file in a folder's place.

    What a trainer of the user's own has written under trials/NNNN/run is its affair.
    """
    for path in (folder.parent, folder):
        if path.is_symlink():
            raise _refusal(path)
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path}: a file, where the folder of sweeps goes; move it away")
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (Path(place) / name).is_symlink():
                raise _refusal(Path(place) / name)
        if Path(place).parent.parent == folder and Path(place).parent.name == "trials" and "run" in folders:
            folders.remove("run")


def _refusal(path: Path) -> InputError:
    return InputError(
        f"{path}: a link to {os.readlink(path)}, and a sweep writes to its own folder only; put a folder there"
    )

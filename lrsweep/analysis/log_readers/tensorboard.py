"""TensorBoard's event files, by the package `tensorboard`: an extra."""

from pathlib import Path

from lrsweep.analysis.log_readers.rows import Row
from lrsweep.errors import InputError

PREFIX = "events.out.tfevents"


def is_event_file(path: Path) -> bool:
    """Returns whether a file begins as event files do: a record with the format's version."""
    try:
        with path.open("rb") as file:
            return b"brain.Event:" in file.read(64)
    except OSError:
        return False


def event_rows(path: Path) -> list[Row]:
    """Returns a row for each scalar of an event file, in the order in which they were written.

    Raises:
        InputError: The package is missing, or this is no event file.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise InputError(f"{path}: reading it takes TensorBoard: pip install 'lrsweep[tensorboard]'") from None
    rows: list[Row] = []
    try:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "tensor" and not value.tensor.tensor_shape.dim:
                    array = make_ndarray(value.tensor)
                    if array.dtype.kind == "f":
                        rows.append({"step": event.step, value.tag: float(array)})
    except Exception as fault:
        raise InputError(f"{path}: is not an event file of TensorBoard, or damaged: {type(fault).__name__}") from None
    return rows

"""`lrsweep.sweep`: a sweep from Python, as `lrsweep +sweep=NAME` runs it from a terminal."""

import contextlib
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsweep.api.inputs import data_input, model_input
from lrsweep.api.overrides import override
from lrsweep.api.result import SweepResult
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.errors import InputError
from lrsweep.files.paths import SweepFolder
from lrsweep.files.symlinks import refuse_symlinks


def sweep(
    sweep: str = "lora_lr",
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    name: str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    data: Any = None,
    eval_data: Any = None,
    quiet: bool = False,
) -> SweepResult:
    """Runs a sweep, or resumes it. The same call after an interruption goes on where the sweep was.

    Trials train in processes of their own, as from the command line, so the caller's model is not changed. What is
    given as an object is written to `outputs/.inputs` for them.

    Args:
        sweep: The sweep file: a name that `+sweep=` takes.
        overrides: More of the config: `["training=medium", "space.optimizer.lr=[1e-4,1e-3]"]`, or the same as a
            mapping, `{"training": "medium", "space.optimizer.lr": [1e-4, 1e-3]}`.
        name: The sweep's name: its results go to `outputs/NAME`. None is the sweep file's.
        model: A loaded `PreTrainedModel`, a folder, a hub id, or an option of the group `model`. None is the config's.
        tokenizer: The tokenizer of a loaded model.
        data: A `datasets.Dataset` or a list of rows, whose format is told by their columns; or a file, a folder or a
            hub id, with `data.format` in the overrides. None is the config's.
        eval_data: The eval rows, in the same ways. None splits some off.
        quiet: Prints nothing.

    Returns:
        The result.

    Raises:
        InputError: The config, the model or the data are invalid.
        NoWinnerError: No trial completed; `lrsweep.load` returns what there is.
        StorageError: The disk or a database failed; the same call resumes.
        KeyboardInterrupt: The sweep was interrupted; the same call resumes, and `lrsweep.load` returns what there is.
    """
    given = [model_input(model, tokenizer), data_input(data, eval_data)]
    own = [override(key, value) for key, value in overrides.items()] if isinstance(overrides, Mapping) else overrides
    if isinstance(own, str):
        raise InputError(f"overrides={own!r}: a text; give a list of overrides, such as [{own!r}]")
    named = [] if name is None else [override("name", name)]
    config = sweep_config([f"+sweep={sweep}", *given[0].overrides, *given[1].overrides, *named, *own])
    from lrsweep.orchestration.interrupt import InterruptedSweepError
    from lrsweep.orchestration.run_sweep import run_sweep
    from lrsweep.report.screen import screen_of_caller

    folder = SweepFolder(config.name)
    refuse_symlinks(folder.path)
    written: list[Path] = []
    try:
        for one in given:
            written += one.write()
        run_sweep(config, screen_of_caller(quiet=quiet))
    except InputError:
        for path in written:
            _remove(path)
        raise
    except InterruptedSweepError as fault:
        if fault.exit_code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt(
            f"the sweep {config.name} was interrupted: the same call resumes it, and lrsweep.load({config.name!r}) "
            "returns the trials that have ended"
        ) from None
    return SweepResult(folder)


def _remove(path: Path) -> None:
    """Removes a file or a folder that this call has written, and the folders above it that are empty then."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
        path.parent.parent.rmdir()

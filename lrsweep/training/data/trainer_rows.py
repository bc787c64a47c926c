"""Rows that another trainer reads and tokenises with its own code, in its own Python, once for all sweeps.

The programs that it runs there are in `lrsweep.trainer_side`.
"""

import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from lrsweep import trainer_side
from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults
from lrsweep.files.locks import exclusive
from lrsweep.files.paths import expanded
from lrsweep.training.phases import phase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each trainer's own program, beside which its Python is, and ours.
_PROGRAMS = {"axolotl": ("axolotl", "axolotl_rows.py"), "ms-swift": ("swift", "ms_swift_rows.py")}
# What ends the output of a program that failed, at most.
_LAST = 300


def python_of(config: DataConfig) -> Path:
    """The Python of the trainer that tokenises the rows.

    Raises:
        InputError: `data.python` is not there, or nothing is on the PATH.
    """
    name = str(config.tokenized_by)
    if config.python is not None:
        # Not resolved: a virtual environment's Python is a link, and knows its packages by where the link is.
        python = expanded(config.python)
        if not os.access(python, os.X_OK) or not python.is_file():
            raise InputError(
                f"data.python={config.python}: no such program; give the Python of {name}'s environment, as in "
                "~/venv/bin/python"
            )
        return python
    program = shutil.which(_PROGRAMS[name][0])
    beside = Path(program).resolve().with_name("python3") if program else None
    if beside is None or not beside.exists():
        raise InputError(
            f"data.tokenized_by={name}: {_PROGRAMS[name][0]} is not on PATH, and {name} is to tokenise the rows; set "
            "data.python to the Python of its environment"
        )
    return beside


def made(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> DataConfig:
    """Has the trainer make the rows, if it has not done so before.

    Args:
        config: The data's config, with `tokenized_by`.
        tokenizer: The model's tokenizer.

    Returns:
        The config of the rows that it made, which are files.

    Raises:
        InputError: The trainer cannot make them, or its tokenizer is not the model's.
        StorageError: The disk is full or fails.
    """
    folder = _folder(config)
    with disk_faults(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                phase(f"having {config.tokenized_by} tokenise the rows, once")
                _make(config, python_of(config), folder)
    sample = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    if sample["ids"] != list(tokenizer(sample["text"], add_special_tokens=False)["input_ids"]):
        raise InputError(
            f"data.tokenized_by={config.tokenized_by}: its tokenizer is not that of model.path; give both the same "
            "model (in data.trainer_config and model.path), or import the file with --engine theirs"
        )
    evaluation = folder / "eval.parquet"
    return config.model_copy(
        update={
            "path": str(folder / "train.parquet"),
            "eval_path": str(evaluation) if evaluation.exists() else None,
            "tokenized_by": None,
            "trainer_config": {},
        }
    )


def _folder(config: DataConfig) -> Path:
    """Where the rows are: a folder for each config, Python, and state of the local files that the config names."""
    python = str(python_of(config).absolute())
    parts = [config.tokenized_by, config.trainer_config, python, os.getcwd(), list(_files(config.trainer_config))]
    programs = [file.read_bytes() for file in sorted(_program(config).parent.glob("*.py"))]
    content = json.dumps(parts, sort_keys=True).encode() + b"".join(programs)
    return platformdirs.user_cache_path("lrsweep") / "rows" / hashlib.sha256(content).hexdigest()[:32]


def _program(config: DataConfig) -> Path:
    """The program that the trainer's Python runs."""
    return Path(trainer_side.__file__).parent / _PROGRAMS[str(config.tokenized_by)][1]


def _files(value: Any) -> Iterator[tuple[str, int, int]]:
    """The files that a config names, and those in the folders that it names: path, size and time of each."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _files(part)
    if not isinstance(value, str) or not value:
        return
    path = expanded(value.partition("#")[0])  # ms-swift's FILE#500 is 500 rows of a file
    if not os.path.exists(path):
        if glob.has_magic(str(path)):  # Axolotl's data_files
            for found in sorted(glob.glob(str(path), recursive=True)):
                yield from _files(found)
        return
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            yield str(file), file.stat().st_size, file.stat().st_mtime_ns


def _make(config: DataConfig, python: Path, folder: Path) -> None:
    """Runs the trainer's side, and moves what it wrote to `folder`. Raises InputError."""
    for left_over in folder.parent.glob(f"{folder.name}.*/"):  # of a run that was killed: this one has the lock
        shutil.rmtree(left_over, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    output = folder.with_name(f"{folder.name}.log")
    try:
        (new / "config.json").write_text(json.dumps(config.trainer_config), encoding="utf-8")
        # Its tokenising needs no GPU, and the trials need all of them.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with open(output, "wb") as log:
            code = subprocess.run(
                [str(python), str(_program(config)), str(new / "config.json"), str(new)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "CUDA_VISIBLE_DEVICES": ""},
                check=False,
            ).returncode
        if code:
            lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InputError(
                f"data.tokenized_by={config.tokenized_by}: it cannot make the rows: "
                f"{(lines or ['no output'])[-1][-_LAST:]}; all of its output is in {output}"
            )
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)

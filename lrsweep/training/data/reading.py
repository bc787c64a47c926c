"""Reads raw rows from JSON, JSON lines, CSV and Parquet files, folders of them, and the hub, with their line numbers.

JSON and CSV are read here and not by `datasets`, which guesses types (a date becomes a timestamp, the answer "None" a
null, the answer "42" a number), adds missing fields and does not keep line numbers.
"""

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lrsweep.errors import InputError, NotFoundError
from lrsweep.files.paths import expanded

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class Rows(Protocol):
    """Rows, by number from 0."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """Where a row is, for error messages: FILE:LINE, or a name and the row's number from 1."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[object]:
        """The rows with these numbers, as they are in the file. Raises InputError for one that cannot be read."""
        ...


@dataclass(frozen=True)
class Source:
    """A place that has rows: a file, a folder, or a data set on the hub.

    Attributes:
        key: The config key that names it, for messages: `data.path` or `data.eval_path`.
        path: The file, folder or id on the hub.
        name: The configuration of a folder or of a data set on the hub.
        split: The split of a folder or of a data set on the hub; `train` for a file.
        folder: A folder within a data set on the hub.
    """

    key: str
    path: str
    name: str | None
    split: str
    folder: str | None = None

    def __str__(self) -> str:
        return f"{self.key}={self.path}"

    @property
    def local(self) -> Path | None:
        """The file or folder, which may not exist; None for an id on the hub."""
        path = expanded(self.path)
        looks_local = (
            path.is_absolute() or self.path.startswith((".", "~")) or len(path.parts) > 2 or _suffix(path) in SUFFIXES
        )
        return path if looks_local or os.path.exists(path) else None

    def check(self) -> None:
        """Checks that a local file or folder exists, is not empty and has a known type. Raises InputError."""
        path = self.local
        if path is None:
            return
        if not os.path.exists(path):  # False for a name that is too long
            raise NotFoundError(
                f"{self}: no such file or folder; give a file ({', '.join(SUFFIXES)}), a folder or a hub id"
            )
        if path.is_dir():
            if not is_saved(path) and not any(_is_data_file(file, path) for file in path.rglob("*")):
                raise InputError(f"{self}: the folder holds no data file ({', '.join(SUFFIXES)})")
            return
        if not path.is_file():
            raise InputError(f"{self}: not a file; it is a pipe, a socket or a device")
        if path.resolve().is_relative_to("/proc"):
            raise InputError(f"{self}: not a data file; /proc shows the machine, and changes while it is read")
        if _suffix(path) not in SUFFIXES:
            raise InputError(f"{self}: unknown extension {path.suffix or '(none)'}; use one of {', '.join(SUFFIXES)}")
        if path.stat().st_size == 0:
            raise InputError(f"{self}: the file is empty; it needs at least one row")
        if self.name is not None or self.split != "train":
            what = f"configuration {self.name}" if self.name is not None else f"split {self.split}"
            raise InputError(f"{self}: a single file has no {what}; only a folder or a hub dataset does")

    def open(self) -> Rows:
        """The rows, at least one. A bad row may be noticed only when it is read. Raises InputError."""
        self.check()
        path = self.local
        if path is None:
            rows = self._open_hub()
        elif path.is_dir():
            rows = self._open_saved(path) if is_saved(path) else self._open_folder(path)
        else:
            rows = self._open_files([path])
        if not len(rows):
            raise InputError(f"{self}: no rows in it; it needs at least one")
        return rows

    def _open_files(self, files: list[Path]) -> Rows:
        if any(_suffix(file) == ".parquet" and file.suffix.lower() == ".gz" for file in files):
            raise InputError(f"{self}: a compressed Parquet file; decompress it")
        if all(file.suffix.lower() == ".parquet" for file in files):
            return self._open_table("parquet", data_files=[str(file) for file in files], split="train")
        lines: list[_Line] = []
        for file in files:
            try:
                content = file.read_bytes()
            except OSError as fault:
                raise InputError(f"{self}: {file} cannot be read: {fault.strerror}") from None
            if file.suffix.lower() == ".gz":
                try:
                    content = gzip.decompress(content)
                except (OSError, EOFError, zlib.error):
                    raise InputError(f"{self}: {file} is not a whole gzip file; compress it again") from None
            content = content.removeprefix(b"\xef\xbb\xbf")
            lines += _csv(file, content) if _suffix(file) == ".csv" else _json(file, content)
        return _Lines(lines)

    def _open_saved(self, folder: Path) -> Rows:
        import datasets

        try:
            table = datasets.load_from_disk(str(folder))
        except Exception as fault:
            raise InputError(f"{self}: {first_line(fault)}") from None
        if isinstance(table, datasets.DatasetDict):
            if self.split not in table:
                raise InputError(f"{self}: no split {self.split} in it (there: {', '.join(table)})")
            table = table[self.split]
        return TableRows(str(folder), table)

    def _open_folder(self, folder: Path) -> Rows:
        import datasets

        _silence_datasets()
        try:
            # `datasets` finds the files of each split by the hub's conventions (file names, the README's header).
            found = datasets.load_dataset_builder(str(folder.resolve()), self.name).config.data_files or {}
        except Exception as fault:
            raise InputError(f"{self}: {first_line(fault)}") from None
        splits = {str(split): [Path(file) for file in files] for split, files in found.items()}
        if self.split not in splits:
            split_key = "data.split" if self.key == "data.path" else "data.eval_split"
            raise InputError(f"{self}: no split {self.split} in it; set {split_key} to one of: {', '.join(splits)}")
        files = splits[self.split]
        suffixes = {_suffix(file) for file in files}
        if not suffixes <= set(SUFFIXES) or (len(suffixes) > 1 and ".parquet" in suffixes):
            raise InputError(f"{self}: cannot read {', '.join(sorted(suffixes))} files together; give one file")
        used = {file.resolve() for files in splits.values() for file in files}
        left_out = [
            file.name
            for file in sorted(folder.rglob("*"))
            if _is_data_file(file, folder) and file.resolve() not in used
        ]
        if left_out and not (folder / "README.md").exists():
            raise InputError(
                f"{self}: {left_out[0]} would be left out; keep one kind of file in a folder, or give the file"
            )
        return self._open_files(files)

    def _open_hub(self) -> Rows:
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:
            try:
                # A quick request first: load_dataset retries an unreachable hub for half a minute.
                HfApi().dataset_info(self.path, timeout=10)
            except Exception as fault:
                raise InputError(
                    f"{self}: no such file or folder here, and the hub does not give it: {first_line(fault)}; "
                    "without a network, set HF_HUB_OFFLINE=1 to use a cached copy"
                ) from None
        within = {"data_dir": self.folder} if self.folder else {}
        return self._open_table(self.path, name=self.name, split=self.split, **within)

    def _open_table(self, path: str, **options: Any) -> Rows:
        import datasets

        _silence_datasets()
        try:
            table = datasets.load_dataset(path, **options)
        except Exception as fault:
            # datasets wraps the error in "An error occurred while generating the dataset".
            raise InputError(f"{self}: {first_line(fault.__cause__ or fault)}") from None
        return TableRows(self.path, table)


@dataclass(frozen=True)
class _Line:
    """A row of a text file, and where it is.

    Attributes:
        file: The file.
        number: The line that it starts on.
        content: The row, or a JSON line that is not parsed yet.
        row: The row's number from 1, if its line does not say which row it is; else 0.
    """

    file: Path
    number: int
    content: object
    row: int = 0

    @property
    def where(self) -> str:
        """FILE:LINE, or FILE and the row's number from 1 if several rows share lines."""
        return f"{self.file}: row {self.row}" if self.row else f"{self.file}:{self.number}"


@dataclass(frozen=True)
class _Lines:
    """The rows of text files."""

    lines: list[_Line]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, index: int) -> str:
        """FILE:LINE, or FILE and the row's number."""
        return self.lines[index].where

    def read(self, indices: Sequence[int]) -> Iterator[object]:
        """The rows with these numbers. Raises InputError for a line that is not JSON."""
        for index in indices:
            line = self.lines[index]
            yield _parse(line) if isinstance(line.content, bytes) else line.content


@dataclass(frozen=True)
class TableRows:
    """Rows that have numbers but no lines: those of a table or a list.

    Attributes:
        name: The table's name, for messages.
        rows: A sequence, or a datasets.Dataset, which is one in all but type.
    """

    name: str
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """The table's name and the row's number, from 1."""
        return f"{self.name}: row {index + 1}"

    def read(self, indices: Sequence[int]) -> Iterator[object]:
        """The rows with these numbers."""
        return (self.rows[index] for index in indices)


def _json(file: Path, content: bytes) -> list[_Line]:
    """The rows of a JSON array, of JSON lines, or of {"data": [row, ...]}. Raises InputError."""
    if content.lstrip()[:1] != b"[":
        if (under_data := _under_data(content)) is not None:
            return [_Line(file, 1, row, number) for number, row in enumerate(under_data, start=1)]
        lines = enumerate(content.split(b"\n"), start=1)
        return [_Line(file, number, line) for number, line in lines if line.strip()]
    text = _decode(file, content)
    decode = json.JSONDecoder().raw_decode
    rows: list[_Line] = []
    number, at, counted = 1, text.index("[") + 1, 0
    while True:
        at = _skip_space(text, at)
        if text[at : at + 1] == "]" and not rows:
            break
        number, counted = number + text.count("\n", counted, at), at
        try:
            row, at = decode(text, at)
        except (ValueError, RecursionError) as fault:
            raise InputError(f"{file}:{_line_of(fault, number)}: bad JSON: {_reason(fault)}") from None
        rows.append(_Line(file, number, row))
        at = _skip_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise InputError(f"{file}:{text.count(chr(10), 0, at) + 1}: bad JSON: expected , or ] after a row")
        at += 1
    rest = _skip_space(text, at + 1)
    if rest < len(text):
        raise InputError(f"{file}:{text.count(chr(10), 0, rest) + 1}: bad JSON: text after the array's end")
    if len({line.number for line in rows}) < len(rows):
        return [replace(line, row=number) for number, line in enumerate(rows, start=1)]
    return rows


def _under_data(content: bytes) -> list[object] | None:
    """The rows of one JSON object that has them under `data`; None for other content."""
    if not re.match(rb'\s*\{\s*"data"\s*:\s*\[', content):
        return None
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return None  # JSON lines whose rows have a field `data`
    return list(tree["data"]) if list(tree) == ["data"] else None


def _csv(file: Path, content: bytes) -> list[_Line]:
    """The rows of a CSV file with a header; every value is a string. Raises InputError."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_decode(file, content), newline=""), strict=True)
    rows: list[_Line] = []
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as fault:
            raise InputError(f"{file}:{number}: bad CSV: {fault}") from None
        if cells is None:
            return rows
        if not cells:
            continue
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise InputError(f"{file}:{number}: {len(cells)} cells, but the header has {len(header)}")
        else:
            rows.append(_Line(file, number, dict(zip(header, cells, strict=True))))


def _parse(line: _Line) -> object:
    assert isinstance(line.content, bytes)
    text = _decode(line.file, line.content, line.number)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise InputError(f"{line.file}:{line.number}: bad JSON: {_reason(fault)}") from None


def _decode(file: Path, content: bytes, first_line: int = 1) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        line = first_line + content.count(b"\n", 0, fault.start)
        raise InputError(
            f"{file}:{line}: not UTF-8 (byte 0x{content[fault.start]:02x}); save the file as UTF-8"
        ) from None


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _line_of(fault: BaseException, default: int) -> int:
    return fault.lineno if isinstance(fault, json.JSONDecodeError) else default


def _reason(fault: BaseException) -> str:
    return fault.msg.lower() if isinstance(fault, json.JSONDecodeError) else first_line(fault)


def first_line(fault: BaseException) -> str:
    """A library's error message in one line."""
    text = str(fault).strip()
    return text.splitlines()[0].rstrip(".") if text else type(fault).__name__


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `datasets.save_to_disk` writes."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _suffix(file: Path) -> str:
    """The extension that says what is in a file, without the .gz of a compressed one."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else file.suffix.lower()


def _is_data_file(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return _suffix(file) in SUFFIXES and file.is_file() and not hidden


def _silence_datasets() -> None:
    """Keeps `datasets` from writing to the terminal: its progress bars and warnings are about its cache."""
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(40)  # ERROR

"""Reads LLaMA-Factory's data sets: dataset_info.json has each one's files and columns.

Each row becomes a row of the format `messages`. As in LLaMA-Factory, rows whose turns do not alternate are left out.
LLaMA-Factory's data/README.md describes dataset_info.json.
"""

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsweep.errors import InputError, NotFoundError
from lrsweep.files.paths import expanded
from lrsweep.training.data.formats import BadRowError
from lrsweep.training.data.reading import Rows, Source, first_line

FILE = "dataset_info.json"
# What LLaMA-Factory writes before the id of a hub repository that has the file.
ON_HUB = "REMOTE:"
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
# Columns that some rows may lack.
_OPTIONAL = ("query", "history", "system", "tools")
_OTHER_DATA = ("images", "videos", "audios", "kto_tag", "chosen", "rejected")

# Makes the error for a key of an entry, given the reason.
_Refuse = Callable[[str, str], InputError]


class _BrokenRowError(Exception):
    """A row that LLaMA-Factory leaves out."""


@dataclass(frozen=True)
class Entry:
    """A data set of dataset_info.json.

    Attributes:
        name: Its name there.
        place: Its file, folder, or id on the hub.
        on_hub: Whether `place` is an id on the hub.
        formatting: `alpaca`, `sharegpt` or `openai`.
        columns: The data set's name of each column that it has, by LLaMA-Factory's name.
        tags: The data set's name of each role and field that it has, by LLaMA-Factory's name.
        subset: The configuration on the hub.
        split: The split on the hub.
        folder: A folder within the data set on the hub.
        num_samples: How many rows to draw; None for all.
    """

    name: str
    place: str
    on_hub: bool
    formatting: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]
    subset: str | None
    split: str
    folder: str | None
    num_samples: int | None

    def sources(self) -> list[Source]:
        """The data set's file, the files of its folder, or its data set on the hub."""
        if self.on_hub:
            return [Source("dataset_info.json", self.place, self.subset, self.split, self.folder)]
        path = Path(self.place)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [Source(f"dataset {self.name}", str(file), None, "train") for file in files]


def entries(folder: str, names: str, key: str) -> list[Entry]:
    """The data sets with these names.

    Args:
        folder: The folder of dataset_info.json.
        names: The names, separated by commas.
        key: The config key that has the names, for messages.

    Raises:
        InputError: One of them is missing, or is not for supervised fine-tuning on text.
    """
    path = _fetched(folder) if folder.startswith(ON_HUB) else expanded(folder) / FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else f"bad JSON: {fault}"
        kind = NotFoundError if isinstance(fault, OSError) else InputError
        raise kind(f"data.path={folder}: {path} cannot be read: {reason}; give the folder of a {FILE}") from None
    found = []
    for name in (part.strip() for part in names.split(",")):
        if not isinstance(info, Mapping) or name not in info:
            there = ", ".join(list(info)[:8]) if isinstance(info, Mapping) else "none"
            raise NotFoundError(f"{key}={name}: no such data set in {path} (there: {there})")
        entry = _entry(name, info[name], path)
        if folder.startswith(ON_HUB) and not entry.on_hub:
            raise InputError(f"{folder}: {name}.file_name: only {FILE} itself is fetched; give hf_hub_url there")
        found.append(entry)
    return found


def _fetched(folder: str) -> Path:
    """The file of a repository on the hub, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(folder.removeprefix(ON_HUB), FILE, repo_type="dataset"))
    except Exception as fault:
        raise NotFoundError(f"data.path={folder}: the hub does not give its {FILE}: {first_line(fault)}") from None


def check(folder: str, names: str, key: str) -> None:
    """Checks the data sets as far as possible without reading a row.

    Args:
        folder: The folder of dataset_info.json.
        names: The names, separated by commas.
        key: The config key that has the names, for messages.

    Raises:
        InputError: One of them, or its file, is missing or cannot be used.
    """
    if folder.startswith(ON_HUB):
        return  # only fetching it would tell
    for entry in entries(folder, names, key):
        for source in entry.sources():
            source.check()


def open_sets(folder: str, names: str, key: str, first: int | None, seed: int) -> Rows:
    """Opens data sets and joins their rows.

    Args:
        folder: The folder of dataset_info.json.
        names: The names, separated by commas.
        key: The config key that has the names, for messages.
        first: The most rows to take of each data set, the first ones; None for all.
        seed: Seeds the draw of data sets with `num_samples`.

    Raises:
        InputError: A data set cannot be used, a row is bad, or no usable row is left.
    """
    parts = [_Part(entry, _opened(entry), entry.formatting == "alpaca") for entry in entries(folder, names, key)]
    places: list[tuple[int, int]] = []
    for number, part in enumerate(parts):
        sample = part.sample(seed)
        chosen = sample if first is None else sample[:first]
        broken = [reason for index in chosen if (reason := part.broken(index))]
        left_out = {index for index, _ in broken}
        part.check_columns(chosen)
        if broken and len(broken) == len(chosen):
            raise InputError(f"{key}={part.entry.name}: no usable rows in it: {broken[0][1]}")
        if broken:
            logging.getLogger(__name__).warning(
                "dataset %s: %d row(s) left out, as in LLaMA-Factory: %s", part.entry.name, len(broken), broken[0][1]
            )
        places += [(number, index) for index in chosen if index not in left_out]
    if not places:
        raise InputError(f"{key}={names}: no usable rows in it; it needs at least one")
    return _Joined(parts, places)


def _opened(entry: Entry) -> list[Rows]:
    return [source.open() for source in entry.sources()]


@dataclass(frozen=True)
class _Part:
    """One data set's rows, numbered across its files."""

    entry: Entry
    files: list[Rows]
    alpaca: bool

    def __len__(self) -> int:
        return sum(len(file) for file in self.files)

    def sample(self, seed: int) -> list[int]:
        """The numbers of all rows; with num_samples that many at random, and none twice before every row is drawn."""
        count, wanted = len(self), self.entry.num_samples
        numbers = list(range(count))
        if wanted is None:
            return numbers
        draw = random.Random(seed)  # noqa: S311 - reproducible sampling, not cryptography
        draw.shuffle(numbers)
        return numbers[:wanted] + [draw.randrange(count) for _ in range(wanted - count)]

    def place(self, index: int) -> tuple[Rows, int]:
        """The row's file and its number there."""
        for file in self.files:
            if index < len(file):
                return file, index
            index -= len(file)
        raise IndexError(index)

    def broken(self, index: int) -> tuple[int, str] | None:
        """The number of a row that LLaMA-Factory leaves out, and why; None for others. Raises InputError."""
        try:
            self.row(index)
        except _BrokenRowError as reason:
            file, at = self.place(index)
            return index, f"{file.where(at)}: {reason}"
        except BadRowError as fault:
            file, at = self.place(index)
            raise InputError(f"{file.where(at)}: {fault}") from None
        return None

    def check_columns(self, indices: Sequence[int]) -> None:
        """Checks that each optional column of the entry is in some row: in the others it is null. Raises InputError."""
        read = _OPTIONAL if self.alpaca else ("system", "tools")
        missing = {column for name, column in self.entry.columns.items() if name in read}
        for index in indices:
            if not missing:
                return
            file, at = self.place(index)
            row = next(iter(file.read([at])))
            missing -= set(row) if isinstance(row, Mapping) else set()
        if missing and indices:
            file, at = self.place(indices[0])
            raise InputError(f"{file.where(at)}: field '{min(missing)}' is missing, in every row of {self.entry.name}")

    def row(self, index: int) -> dict[str, Any]:
        """The row in the format `messages`. Raises BadRowError, or _BrokenRowError for one that is left out."""
        file, at = self.place(index)
        row = next(iter(file.read([at])))
        if not isinstance(row, Mapping):
            raise BadRowError(f"a row must be an object with named fields, not {type(row).__name__}")
        return {"messages": _alpaca(row, self.entry) if self.alpaca else _turns(row, self.entry)}


@dataclass(frozen=True)
class _Joined:
    """The usable rows of several data sets: the data set and row number of each."""

    parts: list[_Part]
    places: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.places)

    def where(self, index: int) -> str:
        """The row's file and line."""
        part, row = self.places[index]
        file, at = self.parts[part].place(row)
        return file.where(at)

    def read(self, indices: Sequence[int]) -> Iterator[object]:
        """The rows with these numbers, in the format `messages`."""
        for index in indices:
            part, row = self.places[index]
            yield self.parts[part].row(row)


def _entry(name: str, entry: Any, path: Path) -> Entry:
    """A data set of dataset_info.json, checked. Raises InputError."""

    def refuse(key: str, why: str) -> InputError:
        return InputError(f"{path}: {name}.{key}: {why}")

    if not isinstance(entry, Mapping):
        raise refuse("", 'not a mapping; write it as {"file_name": ...}')
    _check_kind(entry, refuse)
    _check_fields(entry, refuse)
    columns, tags = entry.get("columns"), entry.get("tags")
    on_hub = bool(entry.get("hf_hub_url"))
    place = entry.get("hf_hub_url") or entry.get("file_name")
    if not place:
        raise refuse("file_name", "missing; give the file with its rows")
    return Entry(
        name,
        place if on_hub else str(path.parent / place),
        on_hub,
        entry.get("formatting", "alpaca"),
        # If an entry names some columns, it has no others.
        {key: value for key, value in columns.items() if value} if columns is not None else _COLUMNS,
        {key: value for key, value in tags.items() if value} if tags is not None else _TAGS,
        entry.get("subset"),
        entry.get("split") or "train",
        entry.get("folder"),
        entry.get("num_samples"),
    )


def _check_kind(entry: Mapping[str, Any], refuse: _Refuse) -> None:
    """Checks that the data set can be read, and is for supervised fine-tuning. Raises InputError."""
    for key in _ELSEWHERE:
        if entry.get(key) and not entry.get("hf_hub_url"):
            raise refuse(key, "lrsweep reads files and the Hugging Face hub; give file_name or hf_hub_url")
    if entry.get("ranking"):
        raise refuse("ranking", "pairs to rank are no answers to learn; choose data for stage sft")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise refuse("formatting", f"{formatting!r} is none of alpaca, sharegpt, openai; choose one of them")


def _check_fields(entry: Mapping[str, Any], refuse: _Refuse) -> None:
    """Checks the types of an entry's values, and that its rows are text only. Raises InputError."""
    columns = entry.get("columns")
    for key in ("columns", "tags"):
        if entry.get(key) is not None and not _is_names(entry[key]):
            raise refuse(key, 'not a mapping of names; write it as {"messages": "conversations"}')
    for key in ("file_name", "hf_hub_url", "subset", "split", "folder"):
        if not isinstance(entry.get(key), str | None):
            raise refuse(key, f"{entry[key]!r} is not a string; write one")
    samples = entry.get("num_samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise refuse("num_samples", f"{samples!r} is not a positive integer; write one")
    for key in _OTHER_DATA:
        if columns and columns.get(key):
            raise refuse(f"columns.{key}", "trials learn from text alone; choose a data set without it")


def _is_names(named: Any) -> bool:
    return isinstance(named, Mapping) and all(isinstance(name, str | None) for name in named.values())


def _alpaca(row: Mapping[str, Any], entry: Entry) -> list[dict[str, str]]:
    """The messages of a row of the formatting `alpaca`."""
    columns = entry.columns
    _no_tools(row, entry)
    messages = _system(row, entry)
    history = row.get(columns["history"]) if "history" in columns else None
    for pair in history or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRowError(f"{columns['history']} must hold pairs [question, answer]")
        messages += [_message("user", pair[0]), _message("assistant", pair[1])]
    asked = [_field(row, columns["prompt"])] if "prompt" in columns else []
    asked += [row.get(columns["query"])] if "query" in columns else []
    messages.append(_message("user", "\n".join(_message("user", part)["content"] for part in asked if part)))
    answer = _field(row, columns["response"]) if "response" in columns else None
    if not isinstance(answer, str):
        raise _BrokenRowError(f"field '{columns.get('response', 'response')}' is not a string")
    if not answer.strip():
        raise _BrokenRowError(f"field '{columns['response']}' is empty, so there is nothing to learn")
    return [*messages, _message("assistant", answer)]


def _turns(row: Mapping[str, Any], entry: Entry) -> list[dict[str, str]]:
    """The messages of a row of the formatting `sharegpt` or `openai`."""
    tags = entry.tags
    _no_tools(row, entry)
    if "messages" not in entry.columns or "role_tag" not in tags or "content_tag" not in tags:
        raise BadRowError(f"dataset {entry.name} names no column of messages, or no role_tag and content_tag")
    turns = _field(row, entry.columns["messages"])
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRowError(f"field '{entry.columns['messages']}' must be a list of turns")
    roles = {tags[tag]: role for tag, role in (("user_tag", "user"), ("assistant_tag", "assistant")) if tag in tags}
    tools = {tags[tag] for tag in ("observation_tag", "function_tag") if tag in tags}
    messages = _system(row, entry)
    if turns and "system_tag" in tags and turns[0].get(tags["role_tag"]) == tags["system_tag"]:
        messages, turns = [_message("system", turns[0].get(tags["content_tag"]))], turns[1:]
    for number, turn in enumerate(turns):
        speaker = turn.get(tags["role_tag"])
        if speaker in tools or turn.get("tool_calls"):
            raise BadRowError(
                "has tool calls, which its chat template may render differently from LLaMA-Factory; leave such rows out"
            )
        if speaker not in roles:
            raise _BrokenRowError(
                f"its turns are by {speaker!r}, and the tags of {entry.name} name {', '.join(map(repr, roles))}; "
                f"correct the tags in {FILE}"
            )
        if roles[speaker] != ("user", "assistant")[number % 2]:
            raise _BrokenRowError("its turns do not alternate")
        messages.append(_message(roles[speaker], turn.get(tags["content_tag"])))
    if not turns or len(turns) % 2:
        raise _BrokenRowError("its turns do not alternate")
    return messages


def _system(row: Mapping[str, Any], entry: Entry) -> list[dict[str, str]]:
    system = row.get(entry.columns["system"]) if "system" in entry.columns else None
    return [_message("system", system)] if system else []


def _no_tools(row: Mapping[str, Any], entry: Entry) -> None:
    if "tools" in entry.columns and row.get(entry.columns["tools"]):
        raise BadRowError(
            "has tools, which its chat template may render differently from LLaMA-Factory; leave such rows out"
        )


def _field(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise BadRowError(
            f"field '{column}' is missing (the row has: {', '.join(list(map(str, row))[:8]) or 'no fields'})"
        )
    return row[column]


def _message(role: str, content: Any) -> dict[str, str]:
    if not isinstance(content, str):
        raise BadRowError(
            f"a {role} turn must be a string, not {'null' if content is None else type(content).__name__}"
        )
    return {"role": role, "content": content}

"""Bad rows, data files, and LLaMA-Factory's dataset_info.json."""

import json
import os
from pathlib import Path
from typing import Any

from tests.faults.cases import Bad, Content, lines, link, of_rows, sweep

ALPACA = {"instruction": "Say yes", "output": "yes"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Say yes"}, {"from": "gpt", "value": "yes"}]}
MESSAGES = {"messages": [{"role": "user", "content": "Say yes"}, {"role": "assistant", "content": "yes"}]}
PAIR = {"prompt": "Say ", "completion": "yes"}
TEXT = {"text": "yes"}
GOOD = {"alpaca": ALPACA, "sharegpt": SHAREGPT, "messages": MESSAGES, "prompt_completion": PAIR, "text": TEXT}


def third(said: str, form: str, row: Any, *overrides: str) -> Bad:
    """A row in line 3 of rows.jsonl, with good ones around it."""
    return of_rows(f"rows.jsonl:3: {said}", form, lines(row, good=GOOD[form]), *overrides)


def talk(*turns: tuple[str, Any]) -> dict[str, Any]:
    """A row of messages."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


REFUSE = "data.on_bad_row=refuse"
ROWS = [
    third("bad JSON: ", "alpaca", '{"instruction": "torn'),
    third("bad JSON: ", "alpaca", "instruction,output"),
    third("a row must be an object with named fields, not list", "alpaca", ["Say yes", "yes"]),
    third("a row must be an object with named fields, not null", "alpaca", "null"),
    third("a row must be an object with named fields, not int", "alpaca", "42"),
    third("field 'output' is missing (the row has: instruction)", "alpaca", {"instruction": "Say yes"}),
    third("field 'output' is null", "alpaca", ALPACA | {"output": None}, REFUSE),
    third("field 'output' is empty", "alpaca", ALPACA | {"output": " \n"}, REFUSE),
    third("field 'output' must be a string, not int", "alpaca", ALPACA | {"output": 42}),
    third("field 'instruction' is empty", "alpaca", ALPACA | {"instruction": ""}),
    third("history[0] must be a pair", "alpaca", ALPACA | {"history": [["only a question"]]}),
    third("field 'output' has a broken unicode escape", "alpaca", '{"instruction": "a", "output": "\\ud800"}'),
    third("field 'conversations' is missing", "sharegpt", MESSAGES),
    third("field 'conversations' is an empty list", "sharegpt", {"conversations": []}),
    third("field 'conversations' must be a list, not str", "sharegpt", {"conversations": "Say yes"}),
    third("conversations[0] has no 'from'", "sharegpt", {"conversations": [{"value": "Say yes"}]}),
    third(
        "conversations[0].from is 'narrator', an unknown role",
        "sharegpt",
        {"conversations": [{"from": "narrator", "value": "Once"}]},
    ),
    third("messages[1].role is 'bot', an unknown role", "messages", talk(("user", "Say yes"), ("bot", "yes"))),
    third("field 'messages[1].content' is null", "messages", talk(("user", "Say yes"), ("assistant", None))),
    third("no assistant turn to learn", "messages", talk(("user", "Say yes")), REFUSE),
    third("field 'completion' is missing", "prompt_completion", {"prompt": "Say yes"}),
    third("field 'prompt' must be a list, not str", "prompt_completion", {"prompt": "Say", "completion": ["yes"]}),
    third("field 'text' is empty", "text", {"text": ""}, REFUSE),
    of_rows(
        "rows.jsonl:1: field 'question' is missing",
        "alpaca",
        lines(good=ALPACA),
        "data.columns={instruction: question}",
    ),
]

FILES = [
    sweep(
        "data.path=none.jsonl: no such file", "data=local", "data.format=alpaca", "data.path=none.jsonl", process=True
    ),
    sweep("data.path=./nowhere: no such file", "data=local", "data.format=alpaca", "data.path=./nowhere"),
    sweep("data.path: missing", "data=local", "data.format=alpaca"),
    of_rows("data.format='csv': ", "csv", lines(good=ALPACA)),
    of_rows("data.path=rows.jsonl: the file is empty", "alpaca", ""),
    of_rows("data.path=rows.jsonl: no rows in it", "alpaca", "\n\n\n"),
    of_rows("data.path=rows.json: no rows in it", "alpaca", "[]", file="rows.json"),
    of_rows("rows.json:2: bad JSON: ", "text", '[{"text": "a"},\n{"text": "a"', file="rows.json"),
    of_rows("rows.json:1: bad JSON: text after the array's end", "text", '[{"text": "a"}] and more', file="rows.json"),
    of_rows("rows.jsonl:3: not UTF-8 (byte 0xff)", "text", b'{"text": "a"}\n' * 2 + b'{"text": "\xff"}\n'),
    of_rows("rows.jsonl:", "text", "\x00\x01\x02" * 100),
    of_rows("rows.jsonl:1: not UTF-8", "text", b"\x1f\x8b\x08\x00 a compressed file\n" * 9),
    of_rows("rows.jsonl:3: bad JSON: ", "text", lines('{"text": ' + "[" * 100_000, good=TEXT)),
    of_rows("rows.csv:3: ", "prompt_completion", "prompt,completion\na,b\na,b,c\n", file="rows.csv"),
    of_rows("rows.csv:3: bad CSV: ", "prompt_completion", 'prompt,completion\na,b\n"a,b\n', file="rows.csv"),
    of_rows("data.path=rows.txt: unknown extension .txt", "text", "a\n", file="rows.txt"),
    of_rows("data.path=rows.parquet: ", "text", b"PAR1 and not a table", file="rows.parquet"),
    of_rows("data.path=rows: the folder holds no data file", "text", lambda path: path.mkdir(), file="rows"),
    sweep(
        "data.path=rows: ",
        "data=local",
        "data.format=text",
        "data.path=rows",
        files={"rows/a.jsonl": lines(good=TEXT), "rows/b.csv": "text\nyes\n"},
    ),
    of_rows("data.path=pipe.jsonl: not a file; it is a pipe", "text", os.mkfifo, file="pipe.jsonl"),
    of_rows("data.eval_path=none.jsonl: no such file", "text", lines(good=TEXT), "data.eval_path=none.jsonl"),
    of_rows(
        "data.eval_path=rows.jsonl: the eval rows are the training rows",
        "text",
        lines(good=TEXT),
        "data.eval_path=rows.jsonl",
    ),
    of_rows("data.eval_fraction=0.0: no eval rows", "text", lines(good=TEXT), "data.eval_fraction=0"),
    of_rows("1 row(s) with data.eval_fraction=0.1 leave nothing to train on", "text", lines(TEXT, before=0, after=0)),
    of_rows("data.path=rows.jsonl: a single file has no split test", "text", lines(good=TEXT), "data.split=test"),
    of_rows("data.path=rows.jsonl: a single file has no configuration en", "text", lines(good=TEXT), "data.name=en"),
    of_rows(
        "data.columns.question: format alpaca has no such field",
        "alpaca",
        lines(good=ALPACA),
        "data.columns={question: q}",
    ),
    of_rows("data.max_length=2: it cuts off all there is to learn", "alpaca", lines(good=ALPACA), "data.max_length=2"),
    of_rows("data.max_length=1: ", "alpaca", lines(good=ALPACA), "data.max_length=1"),
    sweep("data.path=embedded: its rows are prompt_completion", "data.format=alpaca"),
    sweep("data.path=somebody/rows: ", "data=local", "data.format=text", "data.path=somebody/rows"),
]


def info(said: str, entries: Any, *overrides: str, **files: Content) -> Bad:
    """Data set `mine` of LLaMA-Factory's in ./data."""
    written = entries if isinstance(entries, str) else json.dumps(entries)
    return sweep(
        said,
        "data=local",
        "data.format=llamafactory",
        "data.path=data",
        "data.name=mine",
        *overrides,
        files={
            "data/dataset_info.json": written,
            **{f"data/{name.replace('__', '.')}": text for name, text in files.items()},
        },
    )


MINE = {"mine": {"file_name": "mine.jsonl"}}

DATASET_INFO = [
    sweep(
        "data/dataset_info.json cannot be read",
        "data=local",
        "data.format=llamafactory",
        "data.path=data",
        "data.name=mine",
    ),
    sweep("data.name: missing", "data=local", "data.format=llamafactory", "data.path=data"),
    info("data/dataset_info.json cannot be read: bad JSON", '{"mine": {'),
    info("data.name=mine: no such data set", []),
    info("data.name=mine: no such data set in data/dataset_info.json (there: yours)", {"yours": {}}),
    info("mine.: not a mapping", {"mine": "mine.jsonl"}),
    info("mine.file_name: missing", {"mine": {}}),
    info(
        "mine.formatting: 'chatml' is none of alpaca, sharegpt, openai",
        {"mine": {"file_name": "a.jsonl", "formatting": "chatml"}},
    ),
    info("mine.ranking: ", {"mine": {"file_name": "a.jsonl", "ranking": True}}),
    info("mine.script_url: ", {"mine": {"script_url": "mine.py"}}),
    info("mine.columns.images: ", {"mine": {"file_name": "a.jsonl", "columns": {"images": "pictures"}}}),
    info("mine.columns: ", {"mine": {"file_name": "a.jsonl", "columns": ["instruction"]}}),
    info("mine.tags: ", {"mine": {"file_name": "a.jsonl", "formatting": "sharegpt", "tags": "from"}}),
    info("mine.num_samples: ", {"mine": {"file_name": "a.jsonl", "num_samples": "many"}}),
    info("mine.file_name: ", {"mine": {"file_name": 5}}),
    info("dataset mine=data/mine.jsonl: no such file", MINE),
    info("data/mine.jsonl:1: field 'input' is missing, in every row of mine", MINE, mine__jsonl=lines(good=ALPACA)),
    info(
        "data.name=mine: no usable rows",
        {"mine": {"file_name": "mine.jsonl", "formatting": "sharegpt"}},
        mine__jsonl=lines(good={"conversations": [{"from": "gpt", "value": "yes"}]}),
    ),
    info("template=klingon: ", MINE, "data.template=klingon", mine__jsonl=lines(good=ALPACA | {"input": ""})),
]

LONG = "n" * 300
LOCAL = ("data=local", "data.format=alpaca")
RIGHT = lines(good=ALPACA)


def linked(path: Path) -> None:
    """A second name of the train rows."""
    os.link(path.parent / "rows.jsonl", path)


PLACES = [
    *(
        sweep(f"{key}={path}: no such file or folder", *LOCAL, *before, f"{key}={path}", files={"rows.jsonl": RIGHT})
        for key, before in (("data.path", ()), ("data.eval_path", ("data.path=rows.jsonl",)))
        for path in ("~nosuchuser/rows.jsonl", "~nosuchuser", f"{LONG}.jsonl", f"./{LONG}", f"/{LONG}/{LONG}/rows.csv")
    ),
    *(
        sweep(f"data.path=/proc/{name}: not a data file", *LOCAL, f"data.path=/proc/{name}")
        for name in ("self/status", "cpuinfo", "self/environ", "kallsyms")
    ),
    *(
        sweep(f"data.path=/dev/{name}: not a file; it is a pipe", *LOCAL, f"data.path=/dev/{name}")
        for name in ("zero", "null", "urandom", "full")
    ),
    *(
        sweep(
            f"data.path=rows.{kind}: not a file; it is a pipe",
            *LOCAL,
            f"data.path=rows.{kind}",
            files={f"rows.{kind}": os.mkfifo},
        )
        for kind in ("jsonl", "json", "csv", "parquet")
    ),
    *(
        sweep(
            f"data.eval_path={name}: the eval rows are the training rows",
            *LOCAL,
            "data.path=rows.jsonl",
            f"data.eval_path={name}",
            files={"rows.jsonl": RIGHT, **files},
        )
        for name, files in (
            ("rows.jsonl", {}),
            ("./rows.jsonl", {}),
            ("again.jsonl", {"again.jsonl": linked}),
            ("soft.jsonl", {"soft.jsonl": link("rows.jsonl")}),
        )
    ),
]

TABLE = [*ROWS, *FILES, *DATASET_INFO, *PLACES]

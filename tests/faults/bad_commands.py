"""Bad studies and summaries on disk, exports, imports, curves, range tests."""

import contextlib
import json
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import yaml

from tests.faults.bad_configs import BOMB
from tests.faults.cases import Bad, Content, a_folder, put, sweep

OUT = "outputs/lora_lr"
NOISE = random.Random(0).randbytes(8192)


def a_study(path: Path) -> None:
    """A study of two trials, as Optuna writes it."""
    import optuna

    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="lora_lr")
    study.optimize(lambda trial: trial.suggest_float("optimizer.lr", 0, 1), n_trials=2)


def half_a_study(path: Path) -> None:
    """Its first half."""
    a_study(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_torn_study(path: Path) -> None:
    """Its second page is noise."""
    a_study(path)
    content = bytearray(path.read_bytes())
    content[4096:8192] = NOISE[:4096]
    path.write_bytes(bytes(content))


def another_optunas(path: Path) -> None:
    """A study of an Optuna that is not out yet."""
    a_study(path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = 'v99.0.0'")
        database.execute("update version_info set schema_version = 99")


STORAGE = [
    sweep(f"{OUT}/study.db: not usable as a study: ", files={f"{OUT}/study.db": another_optunas}, code=4),
    sweep(
        f"{OUT}/study.db: the study is gone",
        files={f"{OUT}/study.db": b"", f"{OUT}/trials/0000/metrics.jsonl": ""},
        code=4,
    ),
    sweep(f"{OUT}/study.db: the study is gone", files={f"{OUT}/trials/0000/metrics.jsonl": ""}, code=4),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": NOISE}, code=4, process=True),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": b"SQLite format 3\x00" + NOISE}, code=4),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": "trials: 7\n"}, code=4),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": half_a_study}, code=4),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": a_torn_study}, code=4),
    sweep(f"{OUT}/study.db: ", files={f"{OUT}/study.db": a_folder}, code=4),
]


TRACKING = [
    sweep("mlflow.db: (sqlite3.DatabaseError)", files={"mlflow.db": NOISE}, code=4),
    sweep("mlflow.db: (sqlite3.DatabaseError)", files={"mlflow.db": b"SQLite format 3\x00" + NOISE}, code=4),
    sweep(
        "tracking.uri=postgresql+psycopg://127.0.0.1:1/none: ",
        "tracking.uri=postgresql+psycopg://127.0.0.1:1/none",
        code=4,
    ),
]


def exported(said: str, *arguments: str, files: dict[str, Content] | None = None, code: int = 2) -> Bad:
    """An export of a sweep that has ended."""
    return Bad(said, ("export", "lora_lr", *arguments), {OUT: a_finished_sweep, **(files or {})}, code)


def a_finished_sweep(folder: Path) -> None:
    """config.yaml and summary.json of a sweep with two trials."""
    from lrsweep.config import search_space
    from lrsweep.config.hydra_compose import sweep_config
    from lrsweep.config.search_method import settle
    from lrsweep.files.atomic import write_text
    from lrsweep.files.paths import SweepFolder
    from lrsweep.files.yaml_writer import to_yaml
    from lrsweep.report.summary import About, Links, summarise
    from lrsweep.search.records import Record, TrialSpec
    from lrsweep.tracking import DatasetInfo

    folder.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder.parent.parent)
    try:
        config, _ = settle(sweep_config(["+sweep=lora_lr", "space.optimizer.lr=[1e-4,1e-3]"]))
        axes = search_space.axes(config)
        records = [
            Record(n, TrialSpec({"optimizer.lr": lr}), "complete", 60, 4.0 - n, "") for n, lr in enumerate((1e-4, 1e-3))
        ]
        write_text(folder / "config.yaml", to_yaml(config.masked()))
        summarise(
            config,
            axes,
            records,
            SweepFolder("lora_lr"),
            About(DatasetInfo("d", "d", "0", 9, 1), Links("", "")),
        )
    finally:
        os.chdir(before)


def changed(**keys: Any) -> Any:
    """The same with other keys in its summary.json."""

    def make(folder: Path) -> None:
        a_finished_sweep(folder)
        path = folder / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return make


def broken(content: bytes) -> Any:
    """The same with another summary.json."""

    def make(folder: Path) -> None:
        a_finished_sweep(folder)
        (folder / "summary.json").write_bytes(content)

    return make


def damaged_config(content: Content) -> Any:
    """The same with another config.yaml."""

    def make(folder: Path) -> None:
        a_finished_sweep(folder)
        put(folder, {"config.yaml": content})

    return make


def with_metrics(content: Content) -> Any:
    """The same with something else in place of a trial's metrics.jsonl."""

    def make(folder: Path) -> None:
        a_finished_sweep(folder)
        put(folder, {"trials/0001/metrics.jsonl": content})

    return make


_NO_CONFIGS: tuple[Content, ...] = (
    *(
        b"\xff\xfe",
        b"\x00\x01",
        "",
        "null\n",
        "- a\n",
        "a: [\n",
        "name: lora_lr\n",
        "a: !!python/name:os.system\n",
        BOMB,
    ),
    *("x: 2020-99-99\n", f"x: {'9' * 5000}\n", "[" * 3000, "x: !!binary a\n", "a: &a [*a]\n", "? [a]\n: 1\n"),
)

BROKEN = [
    *(Bad(f"{OUT}/config.yaml", ("sync", "lora_lr"), {OUT: damaged_config(content)}, 4) for content in _NO_CONFIGS),
    *(
        Bad(f"{OUT}/trials/0001/metrics.jsonl: is not a file", ("report", "lora_lr"), {OUT: with_metrics(thing)}, 4)
        for thing in (a_folder, os.mkfifo)
    ),
]

FINE = "learning_rate: 1.0e-5\nmax_steps: 50\n"

EXPORT = [
    Bad("export: the following arguments are required: NAME, --to", ("export",)),
    Bad("nowhere: no such sweep in outputs/ (choices: none yet)", ("export", "nowhere", "--to", "hydra"), process=True),
    Bad("../outside: no such sweep", ("export", "../outside", "--to", "hydra"), {"outside/config.yaml": "name: x\n"}),
    exported("--to tensorflow: no such format", "--to", "tensorflow"),
    exported("--target-version: has no meaning for hydra", "--to", "hydra", "--target-version", "5"),
    exported("--target-version new: not a version", "--to", "transformers", "--target-version", "new"),
    exported("none.yaml: cannot be read: No such file", "--to", "trl", "--base", "none.yaml"),
    exported("base: cannot be read: Is a directory", "--to", "trl", "--base", "base", files={"base/x": ""}),
    exported("base.yaml:2: not valid YAML: ", "--to", "trl", "--base", "base.yaml", files={"base.yaml": "a: [1\n"}),
    exported("base.yaml: a config is a mapping", "--to", "trl", "--base", "base.yaml", files={"base.yaml": "- a\n"}),
    exported("base.yaml: a config is a mapping", "--to", "trl", "--base", "base.yaml", files={"base.yaml": ""}),
    exported(
        "base.yaml: cannot be read: not UTF-8", "--to", "trl", "--base", "base.yaml", files={"base.yaml": b"\xff\xfe"}
    ),
    exported("base.yaml:5: more than 20000 values", "--to", "trl", "--base", "base.yaml", files={"base.yaml": BOMB}),
    exported("there: ", "--to", "trl", "--out", "there", files={"there/x": ""}, code=4),
    exported("there/out.yaml: ", "--to", "trl", "--out", "there/out.yaml", files={"there": "a file"}, code=4),
    Bad(f"{OUT}/summary.json: damaged", ("export", "lora_lr", "--to", "trl"), {OUT: broken(b'{"name": ')}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("export", "lora_lr", "--to", "trl"), {OUT: broken(b"\xff\xfe\x00")}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("report", "lora_lr"), {OUT: broken(b"[]")}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("report", "lora_lr"), {OUT: broken(b"")}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("report", "lora_lr"), {OUT: changed(trials=["one", "two"])}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("report", "lora_lr"), {OUT: changed(base_loss="high")}, 4),
    Bad(f"{OUT}/summary.json: damaged", ("report", "lora_lr"), {OUT: changed(config={})}, 4),
    Bad("lora_lr: no trial has ended yet", ("report", "lora_lr"), {OUT: changed(trials=[])}),
    Bad(f"{OUT}/summary.json: does not exist yet", ("report", "lora_lr"), {f"{OUT}/config.yaml": "name: lora_lr\n"}, 4),
    Bad(
        f"{OUT}/summary.json: cannot be read",
        ("report", "lora_lr"),
        {f"{OUT}/config.yaml": "name: lora_lr\n", f"{OUT}/summary.json/x": ""},
        4,
    ),
    Bad(
        "outputs/lora_lr/report.html: is a symlink to",
        ("report", "lora_lr"),
        {OUT: a_finished_sweep, f"{OUT}/report.html": lambda path: path.symlink_to("/etc/passwd")},
    ),
    Bad("report: the following arguments are required: NAME", ("report",)),
    Bad("report: the following arguments are required: NAME", ("report", "--all")),
    Bad("/etc: no such sweep", ("report", "/etc")),
]

TRAIN: dict[str, Any] = {
    "model_name_or_path": "m",
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "mine",
    "dataset_dir": "data",
    "learning_rate": 1e-4,
    "max_steps": 50,
    "per_device_train_batch_size": 2,
}
ROW = json.dumps({"instruction": "Say yes", "input": "", "output": "yes"}) + "\n"
DATA: dict[str, Content] = {
    "data/dataset_info.json": json.dumps({"mine": {"file_name": "mine.jsonl"}}),
    "data/mine.jsonl": ROW * 9,
}


def imported(said: str, content: Content | dict[str, Any], *options: str, process: bool = False) -> Bad:
    """LLaMA-Factory's train.yaml; a mapping changes keys of one that would do."""
    text = yaml.safe_dump({**TRAIN, **content}) if isinstance(content, dict) else content
    arguments = ("import", "llamafactory", "train.yaml", *options)
    return Bad(said, arguments, {"train.yaml": text, **DATA}, process=process)


IMPORT = [
    Bad("import: the following arguments are required: FORMAT; see lrsweep import --help", ("import",)),
    Bad("none.yaml: cannot be read", ("import", "trl", "none.yaml"), process=True),
    Bad("import torchtune: no such format", ("import", "torchtune", "t.yaml"), {"t.yaml": FINE}),
    Bad("data: cannot be read: Is a directory", ("import", "trl", "data"), {"data/x": ""}),
    imported("train.yaml:2: not valid YAML: ", "learning_rate: [1e-4\n"),
    imported("train.yaml:1: not valid YAML: ", "model: !!python/object/apply:os.system ['touch owned']\n"),
    imported("train.yaml:2: not valid YAML: learning_rate is given twice", "learning_rate: 1\nlearning_rate: 2\n"),
    imported("train.yaml: not valid YAML: ", "a: \x07\n"),
    imported("train.yaml:1: not valid YAML: ", "? [a, b]\n: 1\n"),
    imported("train.yaml:1: not valid YAML: ", "a: {? {b: 1} : 2}\n"),
    imported("train.yaml: a config is a mapping", "just words\n"),
    imported("train.yaml: a config is a mapping", ""),
    imported("train.yaml: a config is a mapping", "1: a\n"),
    imported("train.yaml: cannot be read: not UTF-8", b"learning_rate: \xff\n"),
    imported("train.yaml:5: more than 20000 values", BOMB, process=True),
    imported("train.yaml:1: *a contains itself", "a: &a [*a]\n"),
    imported("train.yaml:1: nested deeper than 50 levels", "a: " + "[" * 3000 + "]" * 3000 + "\n"),
    imported("learning_rate='fast': not a number", {"learning_rate": "fast"}),
    imported("learning_rate=-0.1", {"learning_rate": -0.1}),
    imported("learning_rate=inf", {"learning_rate": float("inf")}),
    imported("learning_rate=nan", {"learning_rate": float("nan")}),
    imported("model_name_or_path: missing", {"model_name_or_path": None}),
    imported("train.yaml: exists already", {}, "--out", "train.yaml"),
    imported("--out a b.yaml: a sweep file is called NAME.yaml", {}, "--out", "a b.yaml"),
    imported("--out sweeps/mine.json: a sweep file is called NAME.yaml", {}, "--out", "sweeps/mine.json"),
]


def diagnosed(said: str, content: Content, name: str = "log.jsonl", code: int = 2, process: bool = False) -> Bad:
    """A log that shows no curve."""
    return Bad(said, ("diagnose", name), {name: content}, code, process)


DIAGNOSE = [
    Bad("diagnose: the following arguments are required: FILE", ("diagnose",)),
    Bad("none.jsonl: no such file", ("diagnose", "none.jsonl"), process=True),
    Bad("/dev/zero: is a device or a pipe, not a file", ("diagnose", "/dev/zero"), process=True),
    Bad("run: is a folder", ("diagnose", "run"), {"run/x": ""}),
    Bad(f"{'0' * 32}: no such file, and no MLflow store", ("diagnose", "0" * 32)),
    diagnosed("log.jsonl: is empty", "\n"),
    diagnosed("log.jsonl: is not a text file", b"\xff\xfe\x00"),
    diagnosed("log.jsonl: line 2 is not JSON", '{"step": 1, "loss": 2.0}\n{"step"\n{"step": 3, "loss": 2.0}\n'),
    diagnosed("log.jsonl: line 2 is not a JSON object", '{"step": 1, "loss": 2.0}\n[3, 4]\n{}\n'),
    diagnosed("log.jsonl: holds no losses", '{"step": 1, "accuracy": 0.5}\n'),
    diagnosed("log.jsonl: holds no losses", '{"step": "one", "loss": "two"}\n'),
    diagnosed("state.json: not JSON, or cut off", '{"log_history": [\n{"step": 1,', "state.json"),
    diagnosed("state.json: has no log_history", '{\n"steps": []\n}', "state.json"),
    diagnosed("state.json: has no log_history", '{\n"log_history": {"loss": 1}\n}', "state.json"),
    diagnosed("state.json: not a history: nested too deeply", "[" * 100_000, "state.json"),
    diagnosed("state.json: holds no losses", '{\n"log_history": [1, "two", null]\n}', "state.json"),
]

FIND_LR = [
    Bad("find-lr: argument --from: invalid float value: 'low'", ("find-lr", "--from", "low")),
    Bad(
        "--from 1 --to 0.1: must be two learning rates with 0 < from < to",
        ("find-lr", "--from", "1", "--to", "0.1"),
        process=True,
    ),
    Bad("--from nan --to 10: must be two learning rates with 0 < from < to", ("find-lr", "--from", "nan")),
    Bad("--from 1e-07 --to inf: must be two learning rates with 0 < from < to", ("find-lr", "--to", "inf")),
    Bad("--steps 5: at least 20", ("find-lr", "--steps", "5")),
    Bad("--steps 1000000000000: at most 100000", ("find-lr", "--steps", "1000000000000")),
    Bad("--plot range.txt: the file's ending is the format", ("find-lr", "--plot", "range.txt")),
    Bad("--plot nowhere/range.png: no such folder", ("find-lr", "--plot", "nowhere/range.png")),
    Bad("optimizer.lrr: no such key", ("find-lr", "optimizer.lrr=1")),
    Bad("model.path='./nowhere': no such folder", ("find-lr", "model=local", "model.path=./nowhere")),
    Bad("data.path=none.jsonl: no such file", ("find-lr", "data=local", "data.format=text", "data.path=none.jsonl")),
]

OTHERS = [
    Bad("ui: argument --port: invalid int value: 'http'", ("ui", "--port", "http")),
    Bad("ui: --port 99999: a port is a number", ("ui", "--port", "99999")),
    Bad("mlflow.db: no such store", ("ui",)),
    Bad("none.db: no such store", ("ui", "--uri", "sqlite:///none.db")),
    Bad("tracking.uri=notes.txt: a store is", ("ui", "--uri", "notes.txt"), {"notes.txt": "x"}),
    Bad("http://me:***@host: this server has its own UI", ("ui", "--uri", "http://me:hunter2@host")),
    Bad("doctor: unrecognized arguments: now", ("doctor", "now")),
]

# Arguments that name no file.
_NO_FILES = ("", ".", "..", "/", "a/..", "x" * 256, "/dev/zero", "/dev/null")
_FILE_ARGUMENTS: tuple[tuple[str, ...], ...] = (
    ("export", "lora_lr", "--to", "trl", "--out"),
    ("export", "lora_lr", "--to", "trl", "--base"),
    ("import", "trl", "train.yaml", "--out"),
    ("import", "trl"),
    ("find-lr", "--plot"),
)
# URLs that no database and no server has.
_NO_STORES = ("http://[::1", "http://[zz]:5", "http://", "http://h:port", "http://h:0", "http://h:99999")
_NO_DATABASES = ("postgresql://h:port/x", "postgresql://h:99999/x", "mysql://h:1e3/x")
_IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
# Hydra's flags that run something or change where configs are found, in the forms that its parser takes.
_HYDRAS_FLAGS = (
    *("--run", "-r", "--package=model", "-p=model", "--config-path=/tmp", "-cp=/tmp", "--config-name=x", "-cn=x"),
    *("--config-dir=/tmp", "-cd=/tmp", "--shell-completion", "-sc=install=bash", "--version", "--conf=x", "-", "--"),
    *("--experimental-rerun=job.pickle", "--experimental=job.pickle", "--exp=job.pickle", "--e=job.pickle"),
)

# PyYAML's constructors raise Python's errors for these.
_NO_VALUES = (
    *("!!timestamp 2020-99-99", "!!timestamp soon", "!!int one", "!!float one", "!!bool maybe", "!!int ''"),
    *("!!omap {a: 1}", "!!pairs 1", "!!set [1]", "!!binary é", "!!python/name:os.system x"),
)

ARGUMENTS = [
    *(
        Bad("not valid YAML: ", ("import", dialect, "train.yaml"), {"train.yaml": f"a: 1\nb: {value}\n"})
        for dialect in ("trl", "llamafactory", "axolotl", "ms-swift", "transformers")
        for value in _NO_VALUES
    ),
    *(sweep("not an override; write key=value", override) for override in ("+=[1]", "++=", "~=1", "+ =1")),
    Bad("\\x9b31m.json: no such file", ("diagnose", "\x9b31m.json")),
    *(Bad("is ", (*command, name), {"train.yaml": FINE}) for command in _FILE_ARGUMENTS for name in _NO_FILES),
    *(sweep("a store is sqlite:///FILE", f"tracking.uri='{uri}'") for uri in (*_NO_STORES, *_NO_DATABASES)),
    *(sweep("a store is sqlite:///FILE", f"tracking.uri='{uri}'") for uri in _IN_MEMORY),
    *(Bad("a store is sqlite:///FILE", ("ui", "--uri", uri)) for uri in ("", *_NO_STORES, *_NO_DATABASES, *_IN_MEMORY)),
    *(sweep(f"search.storage={uri}: ", f"search.storage='{uri}'") for uri in (*_NO_DATABASES, *_IN_MEMORY)),
    sweep("tracking.uri='': ", "tracking.uri=''"),
    sweep("search.storage='': ", "search.storage=''"),
    *(Bad(": no such flag", ("+sweep=lora_lr", flag), {"job.pickle": b"\x80\x04."}) for flag in _HYDRAS_FLAGS),
    *(Bad("--multirun is Hydra's own grid", ("+sweep=lora_lr", flag)) for flag in ("-m", "-m=1", "--multirun=x")),
    Bad("--resolve: ", ("--resolve",)),
    Bad("--resolve: ", ("+sweep=lora_lr", "--resolve")),
    Bad("--cfg x: needs one of job", ("+sweep=lora_lr", "--cfg=x")),
    Bad("x: no such flag", ("+sweep=lora_lr", "--info=x")),
    Bad("extra: no such flag", ("+sweep=lora_lr", "--cfg=job", "extra")),
    Bad("--info all --cfg job: ", ("+sweep=lora_lr", "--info", "all", "--cfg", "job")),
    # Escape sequences are shown escaped.
    Bad(r"\x1b[31mx=1: not an override", ("+sweep=lora_lr", "\x1b[31mx=1")),
    Bad(r"\x1b]0;t\x07: no such command", ("\x1b]0;t\x07",)),
    Bad(r"a\x1b[2J: no such sweep", ("report", "a\x1b[2J")),
    Bad(r"a\x9b.jsonl: no such file", ("diagnose", "a\x9b.jsonl")),
    Bad(r"\udcff: no such file", ("diagnose", "\udcff")),
    Bad(r"\u202e: no such format", ("export", "lora_lr", "--to", "\u202e"), {OUT: a_finished_sweep}),
    sweep(r"a\x1b[31m.jsonl: no such file", "data=local", "data.format=text", "data.path='a\x1b[31m.jsonl'"),
    sweep(r"model.path='a\x00b': holds a NUL", 'model.path="a\x00b"'),
]

TABLE = [*STORAGE, *TRACKING, *EXPORT, *IMPORT, *DIAGNOSE, *FIND_LR, *OTHERS, *ARGUMENTS, *BROKEN]

"""The user documentation: its commands work, its links lead somewhere, and its lists are complete."""

import ast
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest

from lrsweep.analysis.diagnosis import Label
from lrsweep.cli.main import COMMANDS
from lrsweep.cli.main import run as run_command
from lrsweep.config import search_space
from lrsweep.config.config_files import CONF, SWEEPS
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.search_method import settle
from lrsweep.config.trial_schema import DataConfig
from lrsweep.dialects import TRAINERS
from lrsweep.embedded import BASE
from lrsweep.orchestration.executors.factory import EXECUTORS, build_executor
from lrsweep.search.samplers import SAMPLERS, check_search
from lrsweep.training.data.formats import FIELDS, parse
from lrsweep.training.data.loading import check_paths
from lrsweep.training.data.reading import TableRows
from lrsweep.training.data.tokens import TokenRows
from lrsweep.training.engines.factory import ENGINES, check_engine
from tests.conftest import FinishedSweep, lrsweep
from tests.dialects.examples import TRANSFORMERS, write_data

ROOT = Path(__file__).parent.parent.parent
README, CHINESE, DOCS = ROOT / "README.md", ROOT / "README.zh-CN.md", sorted((ROOT / "docs").glob("*.md"))

# Commands that are neither run nor composed here, each with the reason.
NOT_RUN = {
    "make sweep": "installs packages",
    "make test": "is this test suite",
    "make gpu": "takes minutes, for machines with a GPU",
    "make gpu OUT=results PYTHON=python3.12": "takes minutes, for machines with a GPU",
    "make gpu-smoke": "takes minutes; tests/test_gpu_check.py has its parts",
    "lrsweep ui": "starts a server",
    "mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1": "starts a server",
    "pip install 'lrsweep[bnb]'": "installs packages",
    "pip install 'lrsweep[ray,postgresql]'": "installs packages",
    "pip install 'lrsweep[slurm,postgresql]'": "installs packages",
}
# A config of LLaMA-Factory, for the commands that read train.yaml.
TRAIN = f"""\
# My run.
model_name_or_path: {BASE}
stage: sft
do_train: true
finetuning_type: lora
dataset: talks
cutoff_len: 128
val_size: 0.2
output_dir: saves/train
per_device_train_batch_size: 8
learning_rate: 1.0e-3
max_steps: 60
lr_scheduler_type: cosine
warmup_ratio: 0.1
"""
# Runs commands, given as JSON, one after another in one process: importing torch and MLflow takes most of their time.
RUN_ALL = """
import contextlib, io, json, sys
from lrsweep.cli.main import run
from lrsweep.errors import LrsweepError
results = []
for argv in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = run(argv)
        except LrsweepError as fault:
            code = fault.exit_code
            print(fault)
    results.append([code, out.getvalue()])
print(json.dumps(results))
"""


def blocks(path: Path, language: str = "") -> list[str]:
    """The fenced blocks in a language, with lines that a backslash continues joined."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block).replace("\\\n", " ") for _, of, block in found if of == language]


def is_command(line: str) -> bool:
    return re.match(r"(lrsweep|python -m lrsweep|make|mlflow|pip) ", line) is not None


def commands(*paths: Path) -> list[str]:
    """The command lines in the fenced blocks, quoted alike and without comments."""
    lines = [line for path in paths for block in blocks(path) for line in block.splitlines() if is_command(line)]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


def arguments(command: str) -> list[str]:
    words = shlex.split(command)
    return words[3:] if words[0] == "python" else words[1:]


ALL = list(dict.fromkeys(commands(README, *DOCS)))
OURS = [command for command in ALL if command not in NOT_RUN and command.startswith(("lrsweep ", "python -m lrsweep "))]
# Printed by Hydra, which can do so only once in a process.
FLAGS = [command for command in OURS if {"--help", "--cfg"} & set(arguments(command))]
# A range test trains, so its config is composed like a sweep's.
COMPOSED = [c for c in OURS if c not in FLAGS and (arguments(c)[0] == "find-lr" or "=" in arguments(c)[0])]
IMPORTS = [command for command in OURS if arguments(command)[0] == "import"]
RUN = [c for c in OURS if c not in (*FLAGS, *COMPOSED, *IMPORTS) and arguments(c)[0] in COMMANDS]


def test_the_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def test_the_chinese_readme_has_the_same_commands_and_output() -> None:
    assert commands(CHINESE) == commands(README)
    shown = [[b for b in blocks(path) if not is_command(b)] for path in (CHINESE, README)]
    assert shown[0] == shown[1] != []


def test_each_command_is_run_or_composed_or_listed() -> None:
    done = {*FLAGS, *COMPOSED, *IMPORTS, *RUN}
    assert [command for command in ALL if command not in done and command not in NOT_RUN] == []
    assert [command for command in NOT_RUN if command not in ALL] == []
    assert len(RUN) > 5
    assert len(COMPOSED) > 10


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the documentation's commands name; its imports have been made."""
    folder = tmp_path_factory.mktemp("docs")
    write_data(folder / "data")
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "args.yaml").write_text(TRANSFORMERS)
    rows = [{"instruction": f"How much is {i} + {i}?", "output": str(2 * i)} for i in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": row["instruction"], "answer": row["output"]} for row in rows]
    (folder / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = [{"step": i, "loss": 3 - i / 20, "eval_loss": 3 - i / 20} for i in range(40)]
    (folder / "saves" / "run").mkdir(parents=True)
    (folder / "saves" / "run" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "sweeps").mkdir()
    for text in blocks(ROOT / "docs" / "searching.md", "yaml"):
        (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    with contextlib.chdir(folder):
        for command in IMPORTS:
            assert run_command(arguments(command)) == 0
    return folder


@pytest.mark.parametrize("command", COMPOSED)
def test_a_sweep_composes(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    words = [word for word in arguments(command) if word != "find-lr"]
    if "--plot" in words:
        del words[words.index("--plot") :]
    config = sweep_config([*words, "+sweep=lora_lr"] if "find-lr" in command else words)
    search_space.axes(settle(config)[0])
    check_search(config)
    check_engine(config)
    check_paths(config.data)
    build_executor(config)


@pytest.mark.parametrize("command", FLAGS)
def test_a_flag_prints(command: str, workplace: Path) -> None:
    printed = lrsweep(*arguments(command), cwd=workplace)
    assert printed.returncode == 0, printed.stderr
    assert "optimizer" in printed.stdout


@pytest.fixture(scope="module")
def results(workplace: Path, finished_sweep: FinishedSweep) -> dict[str, tuple[int, str]]:
    """The exit code and the output of each command in RUN, run on copies of a finished sweep."""
    for name in ("lora_lr", "train"):
        shutil.copytree(finished_sweep.outputs, workplace / "outputs" / name)
    shutil.copy(finished_sweep.folder / "mlflow.db", workplace)
    argv = json.dumps([arguments(command) for command in RUN])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, argv], cwd=workplace, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return {command: (code, out) for command, (code, out) in zip(RUN, json.loads(done.stdout), strict=True)}


@pytest.mark.xdist_group("finished_sweep")
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs(command: str, workplace: Path, results: dict[str, tuple[int, str]]) -> None:
    code, printed = results[command]
    assert code == 0, printed
    assert printed
    words = arguments(command)
    if "--out" in words:
        assert "learning_rate: 0.003" in (workplace / words[words.index("--out") + 1]).read_text()


@pytest.mark.xdist_group("finished_sweep")
def test_the_readme_shows_what_a_sweep_prints(finished_sweep: FinishedSweep) -> None:
    (output,) = [block for block in blocks(README) if not is_command(block)]
    header = output.splitlines()[0].split()
    assert header in [line.split() for line in finished_sweep.stdout.splitlines()]
    shown, printed = ("".join(re.sub(r"[\d.]+", "N", text).split()) for text in (output, finished_sweep.stdout))
    # The tests' sweep has one seed only, so it calls nothing tied.
    shown = shown.replace("(meanofNseeds)", "")
    assert shown[shown.index("Best:") : shown.index("Statisticallytied:")] in printed


def rows_of_table(path: Path, header: str) -> list[list[str]]:
    """The cells of the table under this header line."""
    lines = path.read_text(encoding="utf-8").split(f"{header}\n", 1)[1].splitlines()[1:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), None)]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in table]


def test_all_sweeps_searches_pruners_and_labels_are_listed() -> None:
    searching, answer = ROOT / "docs" / "searching.md", ROOT / "docs" / "reading-the-answer.md"
    sweeps = [row[0] for row in rows_of_table(searching, "| `+sweep=` | searches |")]
    assert sorted(sweeps) == sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    searches = [row[0] for row in rows_of_table(searching, "| `search=` | trials | notes |")]
    assert sorted(searches) == sorted(SAMPLERS)
    pruners = " ".join(row[0] for row in rows_of_table(searching, "| `pruner=` | stops a trial |"))
    options = {path.stem for path in (CONF / "pruner").glob("*.yaml")} - {"lockstep"}
    assert set(re.findall(r"\w+", pruners)) == options
    labels = [row[0] for row in rows_of_table(answer, "| label | what the curve shows | usual remedy |")]
    assert sorted(labels) == sorted(get_args(Label))


def test_all_engines_and_trainers_are_listed() -> None:
    engines, others = ROOT / "docs" / "engines-and-speed.md", ROOT / "docs" / "other-trainers.md"
    listed = [row[0] for row in rows_of_table(engines, "| `engine=` | trains |")]
    assert sorted(listed) == sorted([*ENGINES, "external"])
    commands = [row[0] for row in rows_of_table(others, "| `engine.dialect` | `engine.command` |")]
    assert sorted(commands) == sorted(TRAINERS)
    spoken = others.read_text(encoding="utf-8").split("\n\n")[1]
    assert sorted(re.findall(r"`([\w-]+)`", spoken)) == sorted(TRAINERS)


def test_the_options_of_each_group_are_listed() -> None:
    """And with them all executors, as each has an option of its name."""
    rows = rows_of_table(ROOT / "docs" / "searching.md", "| group | options | holds |")
    listed = {group: options for group, options, _ in rows if options != "see above"}
    assert set(EXECUTORS) <= set(re.findall(r"\w+", listed["executor"]))
    for group, options in listed.items():
        files = {path.stem for path in (CONF / group).glob("*.yaml")}
        named = set(re.findall(r"\w+", options))
        assert named == files or ("presets" in named and named - {"presets"} < files), group


def test_the_rows_of_each_format_are_read() -> None:
    rows = rows_of_table(ROOT / "docs" / "your-data.md", "| format | a row | optional fields |")
    shown = {row[0]: row[1] for row in rows}
    assert shown.keys() == FIELDS.keys()

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else "text" if value is ... else value

    of_tokens = DataConfig(path="d", format="tokens")
    tokens = TableRows("d", [ast.literal_eval(shown["tokens"])])
    assert TokenRows(of_tokens, 1000).encode(tokens, [0], "train")[1:] == (0, 0)
    for name in FIELDS:
        if name not in ("llamafactory", "tokens"):
            parse(filled(ast.literal_eval(shown[name])), name, {}, has_template=True)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, CHINESE, *DOCS], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_each_page_is_linked_from_the_readmes() -> None:
    for readme in (README, CHINESE):
        text = readme.read_text(encoding="utf-8")
        assert [page.name for page in DOCS if f"(docs/{page.name})" not in text] == []

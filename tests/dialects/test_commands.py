"""`lrsweep import` and `lrsweep export` as commands: a config becomes a sweep, the sweep's best goes back into it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrsweep.dialects import DIALECTS, TRAINERS
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.embedded import BASE
from tests.conftest import FinishedSweep, lrsweep_here
from tests.dialects.examples import AXOLOTL, LLAMAFACTORY_LORA, TRANSFORMERS, TRL, write_data

MINE = f"""\
# My run.
model_name_or_path: {BASE}
stage: sft
do_train: true
finetuning_type: lora   # adapters
lora_rank: 4
dataset: talks
cutoff_len: 128
val_size: 0.2
output_dir: saves/mine
per_device_train_batch_size: 4
learning_rate: 1e-3
max_steps: 8
lr_scheduler_type: cosine
warmup_ratio: 0.1
eval_strategy: steps
eval_steps: 4
plot_loss: true
"""

ADAMW = {
    "name": "adamw",
    "lr": 3e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "lr_groups": {},
    "kwargs": {},
}


def test_a_config_is_imported_swept_and_put_back(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text(MINE)
    told = lrsweep_here("import", "llamafactory", "mine.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "wrote sweeps/mine.yaml; run it with: lrsweep +sweep=mine\n" in told.stdout
    assert "kept for the export, no effect on the sweep: stage, do_train, output_dir, plot_loss\n" in told.stdout
    sweep = load_yaml((tmp_path / "sweeps" / "mine.yaml").read_text(), "sweep")
    assert sweep["space"] == {"optimizer": {"lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}}
    assert sweep["training"]["max_steps"] == sweep["training"]["horizon"] == 8
    assert sweep["training"]["gradient_checkpointing"] is True, "on by default there"

    axis = "space.optimizer.lr=[1e-4,1e-2]"
    run = lrsweep_here("+sweep=mine", axis, "training.gradient_checkpointing=false", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    best = json.loads((tmp_path / "outputs/mine/summary.json").read_text())["best"]
    base = lrsweep_here(
        "export", "mine", "--to", "llamafactory", "--base", "mine.yaml", "--out", "best.yaml", cwd=tmp_path
    )
    assert base.returncode == 0, base.stderr
    out = (tmp_path / "best.yaml").read_text()
    assert out.startswith(f"# The best of the lrsweep sweep mine: optimizer.lr={best['values']['optimizer.lr']:.4g}\n")
    assert f"# Eval loss {best['eval_loss']:.4f} after 8 steps" in out
    assert "# The learning rate is for an effective batch of 4 rows.\n" in out
    old, new = MINE.splitlines(), [line for line in out.splitlines() if line in MINE.splitlines()]
    assert [line for line in old if line not in new] == ["learning_rate: 1e-3"]
    assert yaml.safe_load(out)["learning_rate"] == best["values"]["optimizer.lr"]

    whole = lrsweep_here("export", "mine", "--to", "llamafactory", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    changed = {"learning_rate": best["values"]["optimizer.lr"], "disable_gradient_checkpointing": True}
    assert yaml.safe_load(whole.stdout) == load_yaml(MINE, "mine") | changed


@pytest.mark.parametrize(
    ("dialect", "text", "open_keys"),
    [
        ("llamafactory", LLAMAFACTORY_LORA, ""),
        ("trl", TRL, ""),
        ("axolotl", AXOLOTL, ""),
        ("transformers", TRANSFORMERS, "model.path data.path data.format"),
    ],
)
def test_an_imported_sweep_composes(tmp_path: Path, dialect: str, text: str, open_keys: str) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "theirs.yaml").write_text(text)
    told = lrsweep_here("import", dialect, "theirs.yaml", "--out", "sweeps/ours.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert f"lrsweep +sweep=ours{''.join(f' {key}=...' for key in open_keys.split())}\n" in told.stdout
    given = ["model.path=m", "data.path=d", "data.format=alpaca"] if open_keys else []
    composed = lrsweep_here("+sweep=ours", *given, "--cfg", "job", cwd=tmp_path)
    assert composed.returncode == 0, composed.stderr
    config = yaml.safe_load(composed.stdout)
    assert config["origin"]["dialect"] == dialect
    assert len(config["space"]["optimizer"]["lr"]) == 5
    if open_keys:
        missing = lrsweep_here("+sweep=ours", cwd=tmp_path)
        assert (missing.returncode, missing.stderr) == (2, "lrsweep: data.format: missing; set data.format=...\n")


def test_the_rows_form_is_seen_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    config = {"model_name_or_path": "m", "datasets": [{"path": "json", "data_files": "rows.jsonl"}], "max_steps": 500}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(config))
    assert lrsweep_here("import", "trl", "t.yaml", cwd=tmp_path).returncode == 0
    sweep = load_yaml((tmp_path / "sweeps/t.yaml").read_text(), "sweep")
    assert sweep["data"]["format"] == "prompt_completion"
    assert (sweep["training"]["max_steps"], sweep["training"]["horizon"]) == (200, 500)


def test_epochs_become_steps_of_the_rows_there_are(tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=40)
    text = LLAMAFACTORY_LORA.replace("dataset: identity,talks", "dataset: identity")
    (tmp_path / "t.yaml").write_text(text)
    assert lrsweep_here("import", "llamafactory", "t.yaml", cwd=tmp_path).returncode == 0
    sweep = load_yaml((tmp_path / "sweeps/t.yaml").read_text(), "sweep")
    # 36 rows are left to train on: 18 batches of 2, 3 steps of 8 batches an epoch (the last one short), 3 epochs.
    assert sweep["training"]["horizon"] == 9


def test_what_only_their_trainer_trains_is_a_sweep_of_their_command(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text(MINE + "use_badam: true\nhf_hub_token: hf_" + "x" * 30 + "\n")
    told = lrsweep_here("import", "llamafactory", "mine.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "each trial runs llamafactory-cli train {config}, because of use_badam=True: " in told.stdout
    assert "note: hf_hub_token is a secret and left out; give it in the environment\n" in told.stdout
    assert "note: llamafactory-cli is not on PATH: set engine.python to the Python of its environment" in told.stdout
    text = (tmp_path / "sweeps/mine.yaml").read_text()
    sweep = load_yaml(text, "sweep")
    assert sweep["engine"] == {
        "name": "external",
        "command": "llamafactory-cli train {config}",
        "dialect": "llamafactory",
        "python": None,
    }
    assert load_yaml(sweep["origin"]["base"], "base") == load_yaml(MINE, "mine") | {"use_badam": True}
    assert "hf_x" not in text
    run = lrsweep_here("+sweep=mine", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (
        2,
        "lrsweep: engine.command: llamafactory-cli is not on PATH: set engine.python to the Python of its environment, "
        "or write its path into engine.command\n",
    )


def test_data_and_model_need_not_be_there_yet(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE.replace(str(BASE), "/models/large").replace("max_steps: 8\n", ""))
    told = lrsweep_here("import", "llamafactory", "mine.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "note: data.path=data: data/dataset_info.json cannot be read: No such file" in told.stdout
    write_data(tmp_path / "elsewhere")
    options = ["--data-dir", "elsewhere", "--model", "/other", "--out", "sweeps/b.yaml"]
    told = lrsweep_here("import", "llamafactory", "mine.yaml", *options, cwd=tmp_path)
    assert "No such file" not in told.stdout
    sweep = load_yaml((tmp_path / "sweeps/b.yaml").read_text(), "sweep")
    assert (sweep["data"]["path"], sweep["model"]["path"], sweep["training"]["horizon"]) == ("elsewhere", "/other", 24)


def test_a_command_line_is_imported(tmp_path: Path) -> None:
    line = ["trl", "dpo", "--model_name_or_path", "m", "--dataset_name", "org/pairs", "--learning_rate", "5e-7"]
    told = lrsweep_here(
        "import", "trl", "--", *line, "--bf16", "--lora_target_modules", "q_proj", "v_proj", cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    sweep = load_yaml((tmp_path / "sweeps/trl_dpo.yaml").read_text(), "sweep")
    assert sweep["engine"]["command"] == "trl dpo --config {config}"
    assert load_yaml(sweep["origin"]["base"], "base") == {
        "model_name_or_path": "m",
        "dataset_name": "org/pairs",
        "learning_rate": 5e-7,
        "bf16": True,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert sweep["space"]["optimizer"]["lr"][2] == 5e-7
    assert sweep["search"] == {"metric": "eval_rewards/accuracies", "direction": "maximize", "prior": False}


BAD: list[tuple[list[str], str]] = [
    (["import"], "import: the following arguments are required: FORMAT"),
    (["import", "llamafactory"], "import: give either FILE, or -- and the trainer's command line; see "),
    (
        ["import", "llamafactory", "none.yaml"],
        "none.yaml: cannot be read: No such file or directory; give a YAML",
    ),
    (["import", "tune", "good.yaml"], f"import tune: no such format (choices: {', '.join(TRAINERS)})"),
    (["import", "llamafactory", "merge.yaml"], "dataset: missing, so LLaMA-Factory itself would not train this file"),
    (["import", "transformers", "good.yaml", "--out", "good.yaml"], "good.yaml: exists already; give another --out"),
    (["import", "transformers", "good.yaml", "--out", "a/b.yml"], "--out a/b.yml: a sweep file is called NAME.yaml"),
    (
        ["import", "llamafactory", "dpo.yaml", "--engine", "ours"],
        "stage='dpo': trials do supervised fine-tuning only; set stage: sft",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_bad_import_is_one_line_exit_2_and_nothing_created(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "good.yaml").write_text(MINE)
    (tmp_path / "dpo.yaml").write_text(MINE.replace("stage: sft", "stage: dpo"))
    (tmp_path / "merge.yaml").write_text("model_name_or_path: m\nadapter_name_or_path: saves\n")
    before = sorted(tmp_path.rglob("*"))
    run = lrsweep_here(*arguments, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith(f"lrsweep: {said}"), run.stderr
    assert run.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.xdist_group("finished_sweep")
@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("llamafactory", {"learning_rate": 3e-3, "warmup_ratio": 0.1, "model_name_or_path": str(BASE), "stage": "sft"}),
        ("transformers", {"learning_rate": 3e-3, "warmup_steps": 0.1}),
        ("trl", {"learning_rate": 3e-3, "warmup_steps": 0.1, "completion_only_loss": True, "use_peft": True}),
        ("axolotl", {"learning_rate": 3e-3, "warmup_ratio": 0.1, "base_model": str(BASE), "micro_batch_size": 8}),
        ("hydra", {"optimizer": ADAMW}),
    ],
)
def test_every_dialect_takes_the_default_sweeps_best(
    finished_sweep: FinishedSweep, dialect: str, expected: Any
) -> None:
    exported = lrsweep_here("export", "lora_lr", "--to", dialect, cwd=finished_sweep.folder)
    assert exported.returncode == 0, exported.stderr
    tree = yaml.safe_load(exported.stdout)
    assert {key: tree.get(key) for key in expected} == expected
    for part in (
        "the lrsweep sweep lora_lr: optimizer.lr=0.003",
        "# Eval loss ",
        "earning rate",
        "effective batch of 8 rows",
    ):
        assert part in exported.stdout


@pytest.mark.xdist_group("finished_sweep")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--to", "llamafactory", "--target-version", "v1"],
            "--target-version v1: LLaMA-Factory's v1 engine has no keys",
        ),
        (["--to", "hydra", "--target-version", "1.3"], "--target-version: has no meaning for hydra"),
        (["--to", "hydra", "--base", "x.yaml"], "--base: has no meaning for hydra"),
        (["--to", "axolotl", "--target-version", "1.3"], "--target-version 1.3: axolotl's keys do not depend on it"),
        (
            ["--to", "trl", "--base", "x.yaml"],
            "x.yaml: cannot be read: No such file or directory; give a YAML",
        ),
        (["--to", "tensorflow"], f"--to tensorflow: no such format (choices: {', '.join(DIALECTS)})"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(finished_sweep: FinishedSweep, arguments: list[str], said: str) -> None:
    refused = lrsweep_here("export", "lora_lr", *arguments, cwd=finished_sweep.folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"lrsweep: {said}"), refused.stderr
    assert refused.stderr.count("\n") == 1

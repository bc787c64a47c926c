"""The door: what the command line may say, and how a mistake is told."""

from pathlib import Path

import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import keys
from lrsweep.errors import InputError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sweep_is_named_after_its_file_unless_named() -> None:
    assert sweep_config(["+sweep=lora_lr"]).name == "lora_lr"
    assert sweep_config(["sweep=lora_lr", "name=mine"]).name == "mine"


def test_the_command_line_wins_over_the_sweep_file() -> None:
    assert sweep_config(["+sweep=weight_decay"]).optimizer.lr == 3e-3
    assert sweep_config(["+sweep=weight_decay", "optimizer.lr=7e-4"]).optimizer.lr == 7e-4


def test_a_sweep_file_may_choose_groups() -> None:
    assert sweep_config(["+sweep=full_lr"]).finetune.mode == "full"
    assert sweep_config(["+sweep=adamw_tpe"]).search.method == "tpe"


def test_own_sweeps_and_conf_join_the_packaged(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: tiny\nspace: {optimizer: {lr: [1e-4, 2e-4]}}\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("path: ./tiny\ndtype: float32\n")
    config = sweep_config(["+sweep=mine"])
    assert config.name == "mine"
    assert config.model.path == "./tiny"
    assert sweep_config(["+sweep=lora_lr"]).name == "lora_lr"


def test_a_broken_sweep_file_matters_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "broken.yaml").write_text("space: [1, 2\n")
    assert sweep_config(["+sweep=lora_lr"]).name == "lora_lr"
    with pytest.raises(InputError, match=r"sweeps/broken.yaml: not valid YAML: line 2"):
        sweep_config(["+sweep=broken"])


def test_a_range_takes_the_place_of_a_sweep_files_list() -> None:
    space = sweep_config(["+sweep=lora_lr", "space.optimizer.lr={low: 1e-5, high: 1e-3, num: 3}"]).space
    assert space == {"optimizer": {"lr": {"low": 1e-5, "high": 1e-3, "num": 3}}}


def test_qlora_is_lora_over_a_quantized_base() -> None:
    config = sweep_config(["+sweep=lora_lr", "finetune=qlora"])
    assert (config.finetune.mode, config.model.quantization) == ("lora", "4bit")


def test_every_group_file_says_every_key() -> None:
    """What a group file leaves out cannot be set on the command line without a plus."""
    import yaml

    from lrsweep.config.config_files import CONF

    for path in sorted(CONF.glob("*/*.yaml")):
        if path.stem == "qlora":
            continue
        there = {f"{path.parent.name}.{key}" for key in yaml.safe_load(path.read_text())}
        assert there == {key for key in keys() if key.startswith(f"{path.parent.name}.")}, path


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+sweep=lora_lrr"], "sweep=lora_lrr: no such option; did you mean lora_lr?"),
        (["+sweep=lora_lr", "optimizr.lr=1"], "optimizr.lr: no such key; did you mean optimizer.lr?"),
        (["+sweep=lora_lr", "optimizer.weight_decy=1"], "did you mean optimizer.weight_decay?"),
        (["+sweep=lora_lr", "optimzer=adamw"], "optimzer: no such key; did you mean optimizer?"),
        (
            ["+sweep=lora_lr", "optimizer.learning_rate=1"],
            "optimizer.learning_rate: no such key; did you mean optimizer.lr?",
        ),
        (["+sweep=lora_lr", "training.lr=1"], "training.lr: no such key; did you mean optimizer.lr?"),
        (["+sweep=lora_lr", "batch_size=4"], "batch_size: no such key; did you mean training.batch_size?"),
        (
            ["+sweep=lora_lr", "epochs=3"],
            "epochs: no such key; did you mean training.max_steps? (a trial's length is in steps",
        ),
        (["+sweep=lora_lr", "model_path=x"], "model_path: no such key; did you mean model.path?"),
        (["+sweep=lora_lr", "optimizer=adamv"], "optimizer=adamv: no such option; did you mean adamw?"),
        (["+sweep=lora_lr", "optimizer.lr=0"], "optimizer.lr=0: input should be greater than 0"),
        (["+sweep=lora_lr", "optimizer.lr=nan"], "optimizer.lr=nan: input should be a finite number"),
        (["+sweep=lora_lr", "optimizer.lr=inf"], "optimizer.lr=inf: input should be a finite number"),
        (["+sweep=lora_lr", "optimizer.lr=fast"], "optimizer.lr='fast': input should be a valid number"),
        (["+sweep=lora_lr", "optimizer.lr=true"], "optimizer.lr=True: input should be a valid number"),
        (["+sweep=lora_lr", "optimizer.betas=[0.9,1.0]"], "optimizer.betas.1=1.0: input should be less than 1"),
        (["+sweep=lora_lr", "optimizer.betas=[0.9]"], "optimizer.betas.1: missing"),
        (["+sweep=lora_lr", "optimizer.name=adamm"], "optimizer.name='adamm': input should be 'adamw'"),
        (["+sweep=lora_lr", "training.max_steps=1.5"], "training.max_steps=1.5: input should be a valid integer"),
        (["+sweep=lora_lr", "training.horizon=10"], "training: horizon (10) is the real run's steps"),
        (
            ["+sweep=lora_lr", "training.horizon=3000"],
            "training: max_steps (60) is too few for horizon (3000): the warm-up",
        ),
        (["+sweep=lora_lr", "scheduler.warmup_steps=3"], "scheduler: give warmup_steps or warmup_ratio, not both"),
        (["+sweep=lora_lr", "search=tpe", "search.n_trials=null"], "search: method tpe never ends by itself"),
        (["+sweep=lora_lr", "model=local"], "model.path: missing; set model.path=..."),
        (["+sweep=lora_lr", "model.trust_remote_code=true"], "pin model.revision to a 40-digit commit"),
        (["+sweep=lora_lr", "name=../x"], "name='../x': letters, digits"),
        (["+sweep=lora_lr", "optimizer.lr=1e-4,1e-3"], "write space.optimizer.lr=[1e-4,1e-3]"),
        (["+sweep=lora_lr", "optimizer.lr=${oops}"], "optimizer.lr: Interpolation key 'oops' not found"),
        (["+sweep=lora_lr", "a b=1"], "a b=1: not an override"),
        (["+sweep=lora_lr", "+extra=1"], "extra: no such key"),
        (["+sweep=lora_lr", "+optimizer.extra=1"], "optimizer.extra: no such key"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides: list[str], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        sweep_config(overrides)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_names_are_the_libraries_own() -> None:
    from typing import get_args

    import torch
    from transformers import SchedulerType

    from lrsweep.config.trial_schema import OptimizerName, SchedulerName

    known = {kind.value for kind in SchedulerType}
    assert set(get_args(SchedulerName)) <= known
    torch_names = {name.lower() for name in dir(torch.optim)}
    assert set(get_args(OptimizerName)) <= torch_names


@pytest.mark.parametrize(
    "value",
    [
        "~/models/x",
        "data/訓練.jsonl",
        "my file.jsonl",
        "a,b.jsonl",
        "a=b#c&d (e)'f",
        "x\\",
        "x\\'y",
        "[a]",
        "a: b",
        "1e-5",
    ],
)
@pytest.mark.parametrize(
    "key",
    [
        "data.path",
        *(pytest.param(key, marks=pytest.mark.thorough) for key in ("model.path", "data.eval_path", "engine.python")),
    ],
)
def test_a_path_needs_no_quotes_but_the_shells(key: str, value: str) -> None:
    config = sweep_config(["+sweep=lora_lr", "data=local", "data.path=d", "data.format=text", f"{key}={value}"])
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == value
    quoted = sweep_config(["+sweep=lora_lr", "data=local", "data.path=d", "data.format=text", f'{key}="~/a b"'])
    assert getattr(getattr(quoted, section), name) == "~/a b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("space.optimizer.lr=1e-5,3e-5", "several values make an axis; write space.optimizer.lr=[1e-5,3e-5]"),
        ("space.optimizer.lr=choice(1e-5,3e-5)", "write 'space.optimizer.lr=[1e-5,3e-5]'"),
        ("optimizer.lr=interval(1e-6,1e-3)", "write 'space.optimizer.lr={low: 1e-6, high: 1e-3, log: true}'"),
        ("space.finetune.r=range(4,16,4)", "write 'space.finetune.r={low: 4, high: 16, step: 4}'"),
        ("+sweep=lora_lr,adamw_tpe", "choose one of them, as in +sweep=lora_lr"),
        ("hydra/sweeper=optuna", "lrsweep searches by itself; write search=tpe search.n_trials=20"),
        ("optimizer.learning_rate=1e-4", "did you mean optimizer.lr?"),
        ("learning_rate=1e-4", "did you mean optimizer.lr?"),
        # What the sweep file has there cannot be merged with these.
        ("space.optimizer=[adamw,sgd]", "is a group, and an axis is one key: write space.optimizer.name=[...]"),
        ("space=[1e-4,1e-5]", "space=[1e-4,1e-5]: space has keys of its own; set one of them, as space.KEY=VALUE"),
        ("space.optimizer.lr.low=1e-5", "space.optimizer.lr.low=1e-5: space.optimizer.lr is a list; give a whole new"),
        ("search={a: 1}", "search: is a group; choose one of its options, as search=NAME"),
    ],
)
def test_what_is_hydras_or_anothers_has_a_line_that_says_what_to_write(override: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        sweep_config(["+sweep=lora_lr", override])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_such_a_line_says_can_be_written() -> None:
    for written in ("space.optimizer.lr=[1e-5,3e-5]", "space.optimizer.lr={low: 1e-6, high: 1e-3, log: true}"):
        sweep_config(["+sweep=lora_lr", written])
    assert sweep_config(["+sweep=lora_lr", "data.name=demo,sg"]).data.name == "demo,sg"
    assert sweep_config(["+sweep=lora_lr", "finetune.target_modules=[q_proj]"]).finetune.target_modules == ("q_proj",)
    assert sweep_config(["+sweep=lora_lr", "search.budget=50"]).search.budget == 50

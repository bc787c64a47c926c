"""The tools' own parsers read our exports: transformers' here, the others' in environments from `make interop`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lrsweep import dialects
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.files.yaml_writer import to_yaml
from tests.dialects.examples import AXOLOTL, EXAMPLES, LLAMAFACTORY_FULL, LLAMAFACTORY_LORA, TRL, write_data

ENVIRONMENTS = Path(__file__).parents[2] / ".tmp" / "interop"
SCRIPTS = Path(__file__).parent / "tools"
TUNED: dict[str, Any] = {
    "optimizer.lr": 3.3e-5,
    "optimizer.betas": [0.8, 0.95],
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.01,
    "scheduler.warmup_steps": None,
    "scheduler.warmup_ratio": 0.05,
}


def tuned(dialect: str, text: str, keep: bool, **more: Any) -> tuple[SweepConfig, str]:
    """A config as a sweep would find it best, and its export; `keep` what came from the file, or write all anew.

    `more` are other values of `finetune`.
    """
    trainer = dialects.TRAINERS[dialect]
    run = from_tree(trainer, load_yaml(text, "example"), "example.yaml")
    found = TUNED | {f"finetune.{key}": value for key, value in more.items()}
    best = replace(run.config, found)
    if not keep:
        best = best.model_copy(update={"origin": None})
    return best, to_yaml({**dialects.tree(trainer, best, set(found)), **cpu(dialect)})


def cpu(dialect: str) -> dict[str, Any]:
    """What lets the parser accept the config on a machine without a GPU."""
    return {"bf16": False} | ({} if dialect == "axolotl" else {"use_cpu": True})


def read_by(tool: str, file: Path) -> dict[str, Any]:
    """What the tool's own parser makes of the file."""
    python = ENVIRONMENTS / tool / "bin" / "python"
    if not (ENVIRONMENTS / tool / ".installed").exists():
        pytest.skip(f"{tool} is not installed here: make interop")
    run = subprocess.run(
        [python, SCRIPTS / f"read_{tool}.py", file],
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stderr.strip().splitlines()[-1])
    return found


def agrees(found: dict[str, Any], best: SweepConfig) -> None:
    assert found["lr"] == 3.3e-5
    assert found["betas"] == [0.8, 0.95]
    assert found["eps"] == 1e-7
    assert found["weight_decay"] == 0.01
    assert found["warmup"] in (50, [None, 0.05]), "a twentieth of a thousand steps"
    assert found["schedule"] == [best.scheduler.name, dict(best.scheduler.kwargs)]
    assert found["batch"] == [best.training.batch_size, best.training.gradient_accumulation_steps]
    assert found["seed"] in (best.training.seed, None)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize(
    "text", [LLAMAFACTORY_LORA, LLAMAFACTORY_FULL.replace("deepspeed", "# deepspeed")], ids=["lora", "full"]
)
def test_llamafactory(tmp_path: Path, text: str, keep: bool) -> None:
    write_data(tmp_path / "data")
    best, exported = tuned("llamafactory", text, keep)
    (tmp_path / "out.yaml").write_text(exported)
    found = read_by("llamafactory", tmp_path / "out.yaml")
    agrees(found, best)
    assert found["model"] == best.model.path
    names = best.data.name.split(",") if best.data.name else []
    assert found["data"][:3] == [names, best.data.path, best.data.template]
    targets = best.finetune.target_modules
    if best.finetune.mode == "lora":
        assert found["lora"] == ["lora", best.finetune.r, best.finetune.alpha, list(targets or ())]
    assert found["length"] == ([-1, 3.0] if keep and "max_steps" not in text else [best.training.schedule_steps, 3.0])


def test_a_start_of_lora_is_read_by_the_trainers(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    starts = {"init_lora_weights": "pissa_niter_4", "loraplus_lr_ratio": 4.0}
    _, exported = tuned("llamafactory", LLAMAFACTORY_LORA, True, **starts)
    (tmp_path / "out.yaml").write_text(exported)
    assert read_by("llamafactory", tmp_path / "out.yaml")["start"] == [True, 4, 4.0]
    lora = AXOLOTL.replace("qlora", "lora").replace("load_in_4bit: true\n", "")
    _, exported = tuned("axolotl", lora, True, init_lora_weights="pissa_niter_4")
    (tmp_path / "out.yaml").write_text(exported)
    assert read_by("axolotl", tmp_path / "out.yaml")["start"] == ["pissa_niter_4", None]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
def test_trl(tmp_path: Path, keep: bool) -> None:
    best, exported = tuned("trl", TRL, keep)
    (tmp_path / "out.yaml").write_text(exported)
    found = read_by("trl", tmp_path / "out.yaml")
    agrees(found, best)
    assert found["lora"] == [True, 32, 16, "all-linear"]
    assert found["data"] == ["trl-lib/Capybara", [], 1024, True]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
def test_axolotl(tmp_path: Path, keep: bool) -> None:
    best, exported = tuned("axolotl", AXOLOTL, keep)
    (tmp_path / "out.yaml").write_text(exported)
    found = read_by("axolotl", tmp_path / "out.yaml")
    agrees(found, best)
    assert found["lora"] == ["qlora", 32, 16, ["q_proj", "v_proj"]]
    assert found["data"] == ["fozziethebeat/alpaca_messages_2k_test", "chat_template", 2048, True]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize(("dialect", "text"), [example for example in EXAMPLES if example[0] == "transformers"])
def test_transformers(tmp_path: Path, dialect: str, text: str, keep: bool) -> None:
    from transformers import HfArgumentParser, TrainingArguments

    best, exported = tuned(dialect, text, keep)
    (tmp_path / "out.yaml").write_text(exported)
    (parsed,) = HfArgumentParser(TrainingArguments).parse_yaml_file(str(tmp_path / "out.yaml"))
    assert (parsed.learning_rate, parsed.adam_beta1, parsed.adam_beta2, parsed.adam_epsilon) == (
        3.3e-5,
        0.8,
        0.95,
        1e-7,
    )
    assert parsed.get_warmup_steps(1000) == 50
    assert parsed.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert parsed.max_steps == best.training.schedule_steps == 1200
    assert parsed.optim == ("adamw_torch_fused" if keep else "adamw_torch")

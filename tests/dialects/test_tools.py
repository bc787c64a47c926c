"""The tools' own parsers read our exports: transformers' here, the others' in environments from `make interop`."""

import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrsweep import dialects
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.config.trial_schema import DataConfig
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.training.data.axolotl_chat import TEMPLATES
from lrsweep.training.data.collate import IGNORED
from lrsweep.training.data.encoding import Encoder
from lrsweep.training.data.reading import TableRows
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
    found: dict[str, Any] = run_in(tool, f"read_{tool}.py", file)
    return found


def run_in(tool: str, script: str, *arguments: Path) -> Any:
    """What a script prints that runs in the tool's own environment."""
    python = ENVIRONMENTS / tool / "bin" / "python"
    if not (ENVIRONMENTS / tool / ".installed").exists():
        pytest.skip(f"{tool} is not installed here: make interop")
    run = subprocess.run(
        [python, SCRIPTS / script, *arguments],
        cwd=arguments[0].parent,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stderr.strip().splitlines()[-1])


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


WORDS = (
    "Why is ",
    "the sky",
    " blue?",
    " ",
    "\n\n",
    "  spaced  ",
    "\u65e5\u672c",
    "<|im_end|>",
    "<think>\nhm\n</think>\n\nSo",
)


def conversation(draw: random.Random) -> list[tuple[str, str]]:
    """Roles and texts, at times in an order that some templates refuse."""
    odd = ["system", "user", "assistant"] if draw.random() < 0.3 else []
    roles = [*(["system"] if draw.random() < 0.5 else []), *["user", "assistant"] * draw.randint(1, 3)]
    if odd:
        roles.insert(draw.randint(0, len(roles)), draw.choice(odd))
    return [(role, "".join(draw.choices(WORDS, k=draw.randint(1, 5)))) for role in roles]


def test_conversations_are_written_and_learned_as_axolotl_does_it(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(BASE))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<think>", "</think>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.chat_template = "<|im_start|>", None
    draw = random.Random(0)
    cases: list[dict[str, Any]] = []
    for template in (*TEMPLATES, "tokenizer_default_fallback_chatml"):
        for number in range(60):
            role, content = ("from", "value") if number % 2 else ("role", "content")
            names = {"user": "human", "assistant": "gpt"} if number % 2 else {}
            messages = [{role: names.get(said_by, said_by), content: text} for said_by, text in conversation(draw)]
            row = {"messages": messages} | ({"system": "RULE"} if number % 5 == 0 else {})
            cases.append({"template": template, "row": row, "role": role, "content": content})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    compared: Counter[str] = Counter()
    for eos in ("<|im_end|>", "<eos>"):
        tokenizer.eos_token = eos
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        theirs = run_in("axolotl", "encode_axolotl.py", tmp_path / "tokenizer", tmp_path / "cases.json")
        for case, found in zip(cases, theirs, strict=True):
            columns = {name: case[name] for name in ("role", "content") if case[name] != name}
            data: dict[str, Any] = {
                "format": "axolotl",
                "template": case["template"],
                "columns": columns,
                "on_bad_row": "refuse",
            }
            encoder = Encoder.of(tokenizer, DataConfig(path="d", max_length=9999, **data))
            learns = found is not None and any(label != IGNORED for label in found[1][1:])
            try:
                [ours], _, _ = encoder.encode(TableRows("rows", [case["row"]]), [0], "train")
            except InputError:
                assert not learns
                continue
            assert (list(ours.input_ids), list(ours.labels)) == (found[0], [IGNORED, *found[1][1:]])
            compared[case["template"]] += 1
    assert min(compared[template] for template in TEMPLATES) > 20, compared


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

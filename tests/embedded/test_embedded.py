"""The embedded base and task: an honest split, a base that loads and knows something, a recipe that repeats itself."""

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lrsweep.embedded import BASE, corpus
from lrsweep.embedded.pretrain import pretrain
from lrsweep.errors import InputError

# Nats a label token. A random init has ln(2048) = 7.6.
WORTH_LOADING = 5.0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the standard library."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus._split_pairs.cache_clear()
    yield tmp_path
    corpus._split_pairs.cache_clear()


def package(row: dict[str, str]) -> str:
    return re.sub(r"^_(py_?)?", "", row["prompt"].split(".")[0])


def test_the_sides_share_no_package_and_no_text() -> None:
    train, evaluation = corpus.rows()
    assert len(train) > 2500
    assert len(evaluation) > 800
    assert {package(row) for row in train}.isdisjoint(package(row) for row in evaluation)
    for key in ("prompt", "completion"):
        assert {row[key] for row in train}.isdisjoint(row[key] for row in evaluation)
    for rows in (train, evaluation):
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert all(row["prompt"].endswith('\n"""') and row["completion"].strip() for row in rows)


def test_evaluated_modules_are_absent_from_the_pretraining_texts() -> None:
    texts, held_out = corpus.pretraining_texts(), corpus.held_out_texts()
    message = (Path(sysconfig.get_path("stdlib")) / "email" / "message.py").read_text(encoding="utf-8")
    assert message in held_out
    assert set(texts).isdisjoint(text for text in held_out if "def " in text)
    lines = {line.strip(" \t\"'") for text in texts for line in text.splitlines()}
    assert lines.isdisjoint(row["completion"] for row in corpus.rows()[1])


@pytest.mark.parametrize(("one", "other"), [("email.message", "email"), ("_pydatetime", "datetime"), ("_pyio", "io")])
def test_a_package_and_its_python_twin_are_on_one_side(one: str, other: str) -> None:
    assert corpus.is_evaluated(one) == corpus.is_evaluated(other)


def test_another_process_reads_the_same_rows_and_no_torch() -> None:
    script = (
        "import hashlib, json, sys; from lrsweep.embedded import corpus; rows = corpus.rows(); "
        "assert 'torch' not in sys.modules; print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert there.stdout.strip() == hashlib.sha256(json.dumps(corpus.rows()).encode()).hexdigest()


def test_a_caller_may_change_its_rows() -> None:
    corpus.rows()[0][0]["prompt"] = "changed"
    assert corpus.rows()[0][0]["prompt"] != "changed"


def test_odd_files_are_passed_over(stdlib: Path) -> None:
    good = 'class C:\n    async def f(self, a=1, *, b: int):\n        """Do what {} says.\n\n        More."""\n'
    (stdlib / "csv.py").write_text(good.format("csv"), encoding="utf-8")
    (stdlib / "json").mkdir()
    (stdlib / "json" / "__init__.py").write_text(good.format("json"), encoding="utf-8")
    (stdlib / "json" / "test").mkdir()
    (stdlib / "json" / "test" / "case.py").write_text(good.format("a test"), encoding="utf-8")
    (stdlib / "shutil.py").write_bytes(b'def f():\n    """Latin-1 \xe9 in the docstring."""\n')
    (stdlib / "socket.py").write_text("def f(:\n", encoding="utf-8")
    (stdlib / "string.py").write_text('def f():\n    "A warning: \\d is no escape."\n', encoding="utf-8")
    (stdlib / "struct.py").write_text("\0", encoding="utf-8")
    (stdlib / "numpy.py").write_text(good.format("a stranger"), encoding="utf-8")
    train, evaluation = corpus.rows()
    assert evaluation == [
        {"prompt": 'csv.C.f(self, a=1, *, b: int)\n"""', "completion": "Do what csv says."},
    ]
    assert train == [
        {"prompt": 'json.C.f(self, a=1, *, b: int)\n"""', "completion": "Do what json says."},
        {"prompt": 'string.f()\n"""', "completion": "A warning: \\d is no escape."},
    ]


def test_what_the_train_side_says_is_not_evaluated(stdlib: Path) -> None:
    (stdlib / "csv.py").write_text(
        'def f():\n    """Return the whole number."""\ndef g():\n    """Return one row of it."""\n', encoding="utf-8"
    )
    (stdlib / "json.py").write_text(
        'class C:\n    "Return the whole number."\n    def f():\n        """Say something else."""\n', encoding="utf-8"
    )
    assert [row["completion"] for row in corpus.rows()[1]] == ["Return one row of it."]


def test_a_python_without_sources_is_refused(stdlib: Path) -> None:
    with pytest.raises(InputError, match=r"data\.path='embedded'.*set data\.path"):
        corpus.rows()


def test_rows_fit_the_default_length_and_split_between_tokens(tokenizer: Any) -> None:
    train, evaluation = corpus.rows()
    rows = train + evaluation
    encode = tokenizer.backend_tokenizer.encode_batch
    prompts = encode([row["prompt"] for row in rows])
    completions = encode([row["completion"] for row in rows])
    both = [encoded.ids for encoded in encode([row["prompt"] + row["completion"] for row in rows])]
    assert [prompt.ids + completion.ids for prompt, completion in zip(prompts, completions, strict=True)] == both
    assert max(len(ids) for ids in both) + 1 <= 128


def test_the_base_is_small_and_fp32_safetensors() -> None:
    files = [file for file in BASE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".log", ".md"}
    with safe_open(BASE / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118


def test_the_base_has_learned_what_a_random_init_has_not(tokenizer: Any) -> None:
    evaluation = corpus.rows()[1]
    sample = evaluation[:: len(evaluation) // 64][:64]
    trained = AutoModelForCausalLM.from_pretrained(BASE)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE))
    assert trained.dtype == torch.float32
    assert loss(trained, tokenizer, sample) < WORTH_LOADING < loss(random, tokenizer, sample)


def loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            prompt = tokenizer(row["prompt"])["input_ids"]
            completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([prompt + completion])
            labels = torch.tensor([[-100] * len(prompt) + completion])
            total += float(model(input_ids=ids, labels=labels).loss) * len(completion)
            tokens += len(completion)
    return total / tokens


def test_the_log_says_how_the_base_was_made() -> None:
    header, *steps, end = map(json.loads, (BASE / "pretrain.log").read_text(encoding="utf-8").splitlines())
    assert {"python", "torch", "transformers", "seed", "parameters", "corpus_tokens"} <= header.keys()
    assert steps[0]["loss"] > 7
    assert steps[-1].keys() == {"step", "loss", "lr"}
    assert end["held_out_loss"] < 4


def test_the_recipe_gives_the_same_files_twice(tmp_path: Path) -> None:
    texts, held_out = corpus.pretraining_texts()[:30], corpus.held_out_texts()[:1]
    one, two = (pretrain(texts, held_out, tmp_path / name, steps=3) for name in ("one", "two"))
    assert one == two
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "pretrain.log"} <= set(names)
    for name in set(names) - {"pretrain.log"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_chat_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "What does abs do?"},
        {"role": "assistant", "content": "Return the absolute value."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "# user\nWhat does abs do?\n# assistant\nReturn the absolute value.<eos>\n"
    opening = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(opening)
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "Return the absolute value.<eos>"

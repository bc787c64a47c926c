"""Loading, masking, splitting and packing, on small files and a tokenizer built here."""

import functools
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.report.text import missing_rows
from lrsweep.tracking import DatasetInfo
from lrsweep.training.data.collate import pack
from lrsweep.training.data.loading import IGNORED, Example, check_paths, collate, load

PAD, BOS, EOS = 0, 1, 2
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# Like Qwen3's: only the last answer keeps its (empty) thinking. Like DeepSeek-R1's: the generation prompt opens it.
REWRITING = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
)
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SHUFFLING = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": " Fine,  thanks "},
    {"role": "user", "content": "Élan?"},
    {"role": "assistant", "content": "Né à 5 ☃.\n"},
]


@functools.cache
def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["How are you? Fine, thanks", "the answer is four\n\n", "question   one"] * 20, trainer
    )
    return tokenizer


def tokenizer_with(template: str | None = None, opens_with_bos: bool = True) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, whose offsets leave out a token's leading spaces; or Llama's kind, which adds <s>."""
    copy = Tokenizer.from_str(backend().to_str())
    copy.post_processor = (
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        if opens_with_bos
        else processors.ByteLevel(trim_offsets=True)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(path: object, row_format: str = "prompt_completion", **rest: Any) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), "format": row_format, "eval_fraction": 0.5} | rest)


def learned(tokenizer: PreTrainedTokenizerFast, example: Example) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {n} ", "completion": f"answer {n * n}"} for n in range(count)]


def encode_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row: object, row_format: str, **rest: Any
) -> Example:
    """The train example of a file that holds the row twice."""
    [example] = load(config(write(tmp_path / "rows.jsonl", [row, row]), row_format, **rest), tokenizer).train
    return example


# What is learned


@pytest.mark.parametrize("opens_with_bos", [True, False])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("How are you?\n", "Fine, thanks"), ("a", "  b  "), ("é", "☃ né\n"), ("", "x"), ("<s>a", "b")],
)
def test_plain_completion_is_learned_with_one_end(
    tmp_path: Path, prompt: str, completion: str, opens_with_bos: bool
) -> None:
    tokenizer = tokenizer_with(opens_with_bos=opens_with_bos)
    for ending in ("", "</s>"):
        example = encode_one(
            tmp_path, tokenizer, {"prompt": prompt, "completion": completion + ending}, "prompt_completion"
        )
        text = tokenizer.decode(example.input_ids)
        assert text == ("<s>" if opens_with_bos and prompt != "<s>a" else "") + prompt + completion + "</s>"
        if prompt or opens_with_bos:
            assert learned(tokenizer, example) == completion + "</s>"


def test_a_token_across_the_boundary_is_learned(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    example = encode_one(tmp_path, tokenizer, {"prompt": "How are ", "completion": "you?"}, "prompt_completion")
    assert learned(tokenizer, example) == " you?</s>"


@pytest.mark.parametrize("opens_with_bos", [True, False])
def test_text_is_learned_but_for_its_first_token(tmp_path: Path, opens_with_bos: bool) -> None:
    tokenizer = tokenizer_with(opens_with_bos=opens_with_bos)
    example = encode_one(tmp_path, tokenizer, {"text": "How are you?"}, "text")
    assert (example.input_ids[0] == BOS) == opens_with_bos
    assert example.labels == (IGNORED, *example.input_ids[1:])
    assert example.labels.count(EOS) == 1


def test_alpaca_without_a_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    example = encode_one(tmp_path, tokenizer, {"instruction": "Add", "input": "1 2", "output": "3"}, "alpaca")
    assert tokenizer.decode(example.input_ids) == "<s>Add\n1 2\n3</s>"
    assert learned(tokenizer, example) == "3</s>"


@pytest.mark.parametrize("opens_with_bos", [True, False])
@pytest.mark.parametrize("template", [CHATML, MARKED, OPENING])
def test_every_answer_of_a_conversation_is_learned(tmp_path: Path, template: str, opens_with_bos: bool) -> None:
    tokenizer = tokenizer_with(template, opens_with_bos)
    example = encode_one(tmp_path, tokenizer, {"messages": TALK}, "messages")
    end = "<|im_end|>" if template == MARKED else "<|im_end|>\n"
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert learned(tokenizer, example) == f" Fine,  thanks {end}Né à 5 ☃.\n{end}"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_the_same_conversation_in_other_formats(tmp_path: Path, template: str) -> None:
    tokenizer = tokenizer_with(template)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in TALK]}
    alpaca = {
        "system": TALK[0]["content"],
        "history": [[TALK[1]["content"], TALK[2]["content"]]],
        "instruction": TALK[3]["content"],
        "output": TALK[4]["content"],
    }
    expected = encode_one(tmp_path, tokenizer, {"messages": TALK}, "messages")
    assert encode_one(tmp_path, tokenizer, sharegpt, "sharegpt") == expected
    assert encode_one(tmp_path, tokenizer, alpaca, "alpaca") == expected
    completion_only = encode_one(tmp_path, tokenizer, {"prompt": TALK[:4], "completion": TALK[4:]}, "prompt_completion")
    assert completion_only.input_ids == expected.input_ids
    assert learned(tokenizer, completion_only).rstrip("\n") == "Né à 5 ☃.\n<|im_end|>"


def test_a_template_that_rewrites_earlier_answers_gives_one_example_per_answer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(REWRITING)
    path = write(tmp_path / "rows.jsonl", [{"messages": TALK}] * 2)
    first, second = load(config(path, "messages"), tokenizer).train
    assert learned(tokenizer, first) == "<think></think> Fine,  thanks <|im_end|>\n"
    assert learned(tokenizer, second) == "<think></think>Né à 5 ☃.\n<|im_end|>\n"
    assert tokenizer.decode(second.input_ids) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_a_template_may_refuse_or_confuse(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": TALK}] * 2)
    with pytest.raises(InputError, match=r"rows\.jsonl:\d: the chat template does not write .* \{% generation %\}$"):
        load(config(path, "messages"), tokenizer_with(SHUFFLING))
    with pytest.raises(InputError, match=r"rows\.jsonl:\d: the chat template refuses it: roles must alternate$"):
        load(config(path, "messages"), tokenizer_with("{{ raise_exception('roles must alternate') }}"))


def test_a_template_with_the_date_gives_the_same_tokens_every_day(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    example = encode_one(tmp_path, tokenizer, {"messages": TALK}, "messages")
    assert tokenizer.decode(example.input_ids).startswith("01 Jan 2025\n<|im_start|>")


@pytest.mark.parametrize("row_format", ["sharegpt", "messages"])
def test_conversations_without_a_template_are_refused(tmp_path: Path, row_format: str) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": TALK}])
    with pytest.raises(
        InputError, match=rf"^data\.format={row_format}: conversations need a chat template .* use a chat"
    ):
        load(config(path, row_format), tokenizer_with())


def test_truncation_keeps_the_start_and_counts_what_is_lost(tmp_path: Path) -> None:
    long = {"prompt": "question " * 20, "completion": "answer"}
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "four " * 30}, long, long])
    data = load(config(path, eval_path=write(tmp_path / "eval.jsonl", pairs(2)), max_length=16), tokenizer_with())
    assert (data.dropped, data.cut) == (2, 1)
    info = DatasetInfo("", "", "", len(data.train), len(data.evaluation), data.dropped, data.cut)
    said = "of the 5 rows, 2 dropped: no label tokens left after truncation to max_length; 1 truncated."
    assert missing_rows(info, config(path, max_length=16)) == [f"Warning: data.max_length=16: {said}"]
    assert [len(example.input_ids) for example in data.train] == [16]
    assert EOS not in data.train[0].input_ids
    with pytest.raises(InputError, match=r"^data\.max_length=16: it cuts off all there is to learn in every train row"):
        load(config(write(tmp_path / "long.jsonl", [long, long]), max_length=16), tokenizer_with())


# Where rows come from


def test_all_kinds_of_files_hold_the_same_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    rows = [{"prompt": "2020-01-01", "completion": "None"}, {"prompt": 'say "a,b"\nor c', "completion": "42"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "lines.json").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.csv").write_text(
        '\ufeffprompt,completion\r\n2020-01-01,None\r\n\r\n"say ""a,b""\nor c",42\r\n', newline=""
    )
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", rows[:1])
    write(tmp_path / "folder" / "b.jsonl", rows[1:])
    tokenizer = tokenizer_with()
    names = ["rows.json", "lines.json", "rows.jsonl", "rows.csv", "rows.parquet", "folder"]
    capfd.readouterr()
    loaded = {name: load(config(tmp_path / name), tokenizer) for name in names}
    assert capfd.readouterr() == ("", "")
    assert {data.fingerprint for data in loaded.values()} == {loaded["rows.jsonl"].fingerprint}
    both = [*loaded["rows.csv"].train, *loaded["rows.csv"].evaluation]
    assert {learned(tokenizer, example) for example in both} == {"None</s>", "42</s>"}


def test_a_folder_s_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pairs(3))
    write(tmp_path / "test.jsonl", pairs(2))
    tokenizer = tokenizer_with()
    data = load(config(tmp_path, eval_split="test"), tokenizer)
    assert (len(data.train), len(data.evaluation)) == (3, 2)
    with pytest.raises(InputError, match=r"no split dev in it; set data\.eval_split to one of: train, test$"):
        load(config(tmp_path, eval_path=str(tmp_path), eval_split="dev"), tokenizer)
    (tmp_path / "more.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(InputError, match=r"more\.csv would be left out"):
        load(config(tmp_path), tokenizer)


def test_eval_path_and_columns(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "completion": row["completion"]} for row in pairs(4)]
    path, eval_path = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "eval.jsonl", rows[:2])
    tokenizer = tokenizer_with()
    data = load(config(path, eval_path=eval_path, columns={"prompt": "question"}), tokenizer)
    assert (len(data.train), len(data.evaluation)) == (4, 2)
    assert pickle.loads(pickle.dumps(data)) == data
    assert data.source == f"{path}, eval {eval_path}"
    assert tokenizer.decode(data.train[3].input_ids) == "<s>question 3 answer 9</s>"


def test_embedded_rows() -> None:
    data = load(config("embedded", max_train_rows=5, max_eval_rows=3), tokenizer_with())
    assert (len(data.train), len(data.evaluation)) == (5, 3)
    with pytest.raises(InputError, match=r"^data\.path=embedded: its rows are prompt_completion"):
        check_paths(config("embedded", "alpaca"))


def test_split_and_caps_are_random_disjoint_and_fixed(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    path = write(tmp_path / "rows.jsonl", pairs(40))

    def texts(examples: Sequence[Example]) -> list[str]:
        return [tokenizer.decode(example.input_ids) for example in examples]

    whole = load(config(path, eval_fraction=0.25), tokenizer)
    train, evaluation = texts(whole.train), texts(whole.evaluation)
    assert len(evaluation) == 10
    assert len({*train, *evaluation}) == 40
    assert evaluation != texts(load(config(path, eval_fraction=0.75), tokenizer).train)[:10]
    capped = load(config(path, eval_fraction=0.25, max_train_rows=8, max_eval_rows=4), tokenizer)
    assert set(texts(capped.train)) < set(train)
    assert set(texts(capped.evaluation)) < set(evaluation)
    assert texts(capped.train) != train[:8]
    assert texts(capped.evaluation) != evaluation[:4]


def test_fingerprint(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    rows = pairs(6)
    path = write(tmp_path / "rows.jsonl", rows)
    first = load(config(path), tokenizer).fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert load(config(write(tmp_path / "copy.jsonl", rows)), tokenizer).fingerprint == first
    for change in ({"prompt": rows[4]["prompt"] + "x"}, {"completion": "other"}):
        changed = [*rows[:4], rows[4] | change, rows[5]]
        assert load(config(write(tmp_path / "changed.jsonl", changed)), tokenizer).fingerprint != first
    # The same tokens, but the boundary between prompt and completion has moved.
    moved = [{"prompt": "", "completion": row["prompt"] + row["completion"]} for row in rows]
    assert load(config(write(tmp_path / "moved.jsonl", moved)), tokenizer).fingerprint != first
    assert load(config(path, packing=True), tokenizer).fingerprint != first


# What is refused


GOOD = b'{"prompt": "a", "completion": "b"}\n'
MALFORMED = [
    ("x.jsonl", GOOD + b"\n" + b'{"prompt": "a",\n' + GOOD, "3: bad JSON: "),
    ("x.jsonl", GOOD + b'{"prompt": "a", "completion": "b"} x\n', "2: bad JSON: extra data"),
    ("x.jsonl", GOOD + GOOD.replace(b"a", b"\xff"), "2: not UTF-8 (byte 0xff); save the file as UTF-8"),
    ("x.jsonl", GOOD + b"[" * 100_000 + b"\n", "2: bad JSON: "),
    ("x.jsonl", GOOD + b'{"prompt": "a", "completion": ' + b"1" * 5000 + b"}\n", "2: bad JSON: "),
    ("x.jsonl", GOOD + GOOD + b'{"prompt": "a"}\n', "3: field 'completion' is missing (the row has: prompt)"),
    ("x.jsonl", GOOD + b'\n{"prompt": "a", "completion": null}\n', "3: field 'completion' is null"),
    ("x.jsonl", b'["a"]\n' + GOOD, "2: bad JSON: text after the array's end"),
    ("x.jsonl", GOOD + b'["a"]\n', "2: a row must be an object with named fields, not list"),
    ("x.json", b'[\n{"prompt": "a",\n"completion": "b"},\n{"prompt": "a"}\n]', "4: field 'completion' is missing"),
    ("x.json", b'\n[{"prompt": "a",\n\n"completion": "b",}]', "4: bad JSON: "),
    ("x.json", b"[" + GOOD + GOOD + b"]", "2: bad JSON: expected , or ] after a row"),
    ("x.json", b"[" + GOOD + b",\n" + GOOD, "4: bad JSON: expected , or ] after a row"),
    ("x.json", b"[" + GOOD + b",\n]", "3: bad JSON: "),
    ("x.json", b"[" + GOOD + b"]\n{}", "3: bad JSON: text after the array's end"),
    ("x.json", b"[" + GOOD + b",\n" + GOOD.replace(b"b", b"\xe9") + b"]", "3: not UTF-8 (byte 0xe9)"),
    ("x.json", b"[" + GOOD + b",\n3]", "3: a row must be an object with named fields, not int"),
    ("x.csv", b'prompt,completion\n"a\nb",c\nd,\n', "4: field 'completion' is empty, so there is nothing to learn"),
    ("x.csv", b"prompt,completion\na,b\na,b,c\n", "3: 3 cells, but the header has 2"),
    ("x.csv", b'prompt,completion\na,b\na,"b\n', "3: bad CSV: "),
    ("x.csv", b"prompt,answer\na,b\nc,d\n", ": field 'completion' is missing (the row has: prompt, answer)"),
    ("x.csv", b"prompt,completion\na,b\nc,\xff\n", "3: not UTF-8 (byte 0xff)"),
]


@pytest.mark.parametrize(("name", "content", "reason"), MALFORMED)
def test_malformed_files_are_refused_by_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as fault:
        load(config(path, eval_fraction=0.4), tokenizer_with())
    message = str(fault.value)
    where = str(path) if reason.startswith(":") else f"{path}:"
    assert re.sub(r"(?<=\.csv):\d(?=: field 'completion' is missing)", "", message).startswith(where + reason)
    assert "\n" not in message


def test_bad_rows_of_a_table_are_named_by_number(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "x.parquet"
    datasets.Dataset.from_list([*pairs(2), {"prompt": "a", "completion": None}]).to_parquet(path)
    with pytest.raises(InputError, match=r"x\.parquet: row 3: field 'completion' is null$"):
        load(config(path), tokenizer_with())
    path.write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"^data\.path=.*x\.parquet: [^\n]+$"):
        load(config(path), tokenizer_with())


def refused(settings: DataConfig) -> str:
    with pytest.raises(InputError) as fault:
        check_paths(settings)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_paths_are_checked_without_a_heavy_import(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", pairs(2))
    check_paths(config(good))
    check_paths(config("owner/some-dataset.v1"))
    missing = f"{tmp_path}/none.jsonl"
    assert refused(config(missing)).startswith(f"data.path={missing}: no such file or folder; give a file")
    assert "data.path=none.csv: no such file" in refused(config("none.csv"))
    assert refused(config(good, eval_path=missing)).startswith(f"data.eval_path={missing}: no such file")
    (tmp_path / "empty.jsonl").touch()
    assert refused(config(tmp_path / "empty.jsonl")).endswith("the file is empty; it needs at least one row")
    (tmp_path / "rows.txt").write_text("a")
    assert "unknown extension .txt; use one of .json, .jsonl, .csv, .parquet" in refused(config(tmp_path / "rows.txt"))
    (tmp_path / "folder").mkdir()
    assert "the folder holds no data file" in refused(config(tmp_path / "folder"))
    assert "data.eval_fraction=0.0: no eval rows; set it above 0, or set data.eval_path" in refused(
        config(good, eval_fraction=0.0)
    )
    assert "the eval rows are the training rows" in refused(config(good, eval_path=good))
    assert "a single file has no split test" in refused(config(good, eval_split="test"))
    assert "data.columns.question: format text has no such field; valid: text" in refused(
        config(good, "text", columns={"question": "text"})
    )
    code = (
        "import sys, lrsweep.training.data.loading as data; from lrsweep.config.trial_schema import DataConfig;"
        f"data.check_paths(DataConfig(path={good!r}, format='text'));"
        "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_too_few_rows(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    with pytest.raises(
        InputError, match=r"^data\.path=.*one\.jsonl: 1 row\(s\) with data\.eval_fraction=0\.5 leave nothing"
    ):
        load(config(write(tmp_path / "one.jsonl", pairs(1))), tokenizer)
    for name, content in (("x.json", "[]"), ("x.jsonl", "\n\n"), ("x.csv", "prompt,completion\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=r"^data\.path=.*: no rows in it; it needs at least one$"):
            load(config(tmp_path / name), tokenizer)
    with pytest.raises(InputError, match=r"^data\.eval_path=.*x\.json: no rows in it"):
        load(config(write(tmp_path / "one.jsonl", pairs(1)), eval_path=str(tmp_path / "x.json")), tokenizer)


def test_an_unreachable_hub_is_one_quick_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^data\.path=owner/name: no such file or folder here, and the hub [^\n]+$"):
        load(config("owner/name"), tokenizer_with())


def test_hub_rows_are_asked_for_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fake(path: str, **options: Any) -> datasets.Dataset:
        asked.append((path, options))
        return datasets.Dataset.from_list(pairs(4))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", fake)
    load(config("owner/name", name="main", split="train[:9]", eval_split="test"), tokenizer_with())
    assert asked == [
        ("owner/name", {"name": "main", "split": "train[:9]"}),
        ("owner/name", {"name": "main", "split": "test"}),
    ]


# Batches and packing


def tiny_llama(attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=400, num_key_value_heads=2, attn_implementation=attention, **shape)
    return LlamaForCausalLM(llama).double()


def summed_loss(model: nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    batch = collate(examples, PAD)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.fixture(scope="module")
def rows_of_many_lengths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    rows = [{"prompt": "question " * (n % 4), "completion": "four " * (1 + n % 7)} for n in range(24)]
    rows += [{"prompt": "", "completion": "x"}]
    folder = tmp_path_factory.mktemp("rows")
    settings = config(write(folder / "rows.jsonl", rows), eval_path=write(folder / "eval.jsonl", rows[:1]))
    # Without <s>, the first token of a row with no prompt would be a label of the row packed before it.
    return tuple(load(settings, tokenizer_with(opens_with_bos=False)).train)


def test_rows_are_padded_on_the_right() -> None:
    batch = collate([Example((5, 6, 7), (IGNORED, 6, 7)), Example((8,), (IGNORED,))], PAD)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "labels": [[-100, 6, 7], [-100, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def test_blocks_are_padded_with_a_row_of_their_own() -> None:
    blocks = [
        Example((5, 6, 7, 8, 9), (IGNORED, 6, IGNORED, IGNORED, 9), (2, 1, 2)),
        Example((5, 6), (IGNORED, 6), (2,)),
    ]
    batch = collate(blocks, PAD)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, -100, -100, 9], [-100, 6, -100, -100, -100]]
    assert "attention_mask" not in batch


def test_packing_keeps_every_row_and_fills_blocks(rows_of_many_lengths: tuple[Example, ...]) -> None:
    blocks = pack(rows_of_many_lengths, 48)
    unpacked = []
    for block in blocks:
        start = 0
        for length in block.segments:
            unpacked.append(Example(block.input_ids[start : start + length], block.labels[start : start + length]))
            start += length
        assert start == len(block.input_ids) == len(block.labels) <= 48
    key: Callable[[Example], Any] = lambda example: example.input_ids  # noqa: E731
    assert sorted(unpacked, key=key) == sorted(rows_of_many_lengths, key=key)
    tokens = sum(len(row.input_ids) for row in rows_of_many_lengths)
    assert len(blocks) <= -(-tokens // 48) + 1


# Eager attention takes its softmax in float32.
@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-10)])
def test_packed_rows_have_the_loss_and_gradient_they_have_alone(
    rows_of_many_lengths: tuple[Example, ...], attention: str, tolerance: float
) -> None:
    model = tiny_llama(attention)
    blocks = pack(rows_of_many_lengths, 48)
    assert any(len(block.segments) > 2 for block in blocks)
    assert len({len(block.input_ids) for block in blocks}) > 1  # so that some are padded
    weight = model.model.layers[0].self_attn.q_proj.weight
    alone = sum((summed_loss(model, [row]) for row in rows_of_many_lengths), torch.zeros((), dtype=torch.float64))
    [alone_gradient] = torch.autograd.grad(alone, weight)
    for batches in ([blocks], [[block] for block in blocks]):
        packed = sum((summed_loss(model, batch) for batch in batches), torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(packed, alone, rtol=tolerance, atol=0)
        [gradient] = torch.autograd.grad(packed, weight)
        torch.testing.assert_close(gradient, alone_gradient, rtol=tolerance, atol=tolerance)


def test_padding_leaves_the_loss_alone(rows_of_many_lengths: tuple[Example, ...]) -> None:
    model = tiny_llama("sdpa")
    alone = sum(summed_loss(model, [row]).item() for row in rows_of_many_lengths)
    assert summed_loss(model, rows_of_many_lengths).item() == pytest.approx(alone, rel=1e-12)


def test_trainer_trains_on_packed_examples(rows_of_many_lengths: tuple[Example, ...], tmp_path: Path) -> None:
    blocks = pack(rows_of_many_lengths, 48)
    model = tiny_llama("sdpa").float()
    labels = sum(label != IGNORED for block in blocks for label in block.labels)
    with torch.no_grad():
        expected = summed_loss(model, blocks).item() / labels
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=len(blocks), logging_steps=1, report_to=[], use_cpu=True
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        data_collator=functools.partial(collate, pad_token_id=PAD),
    )
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)


def test_packed_training_rows_and_plain_eval_rows(tmp_path: Path) -> None:
    data = load(config(write(tmp_path / "rows.jsonl", pairs(40)), packing=True, max_length=64), tokenizer_with())
    assert all(len(block.input_ids) <= 64 for block in data.train)
    assert sum(len(block.segments) for block in data.train) == 20
    assert [example.segments for example in data.evaluation] == [()] * 20

"""Bad model folders and adapters."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.bad_data import MESSAGES
from tests.faults.cases import lines, of_model, sweep

CHAT = ("data=local", "data.format=messages", "data.path=rows.jsonl")
TALKS = lines(good=MESSAGES)

Change = Callable[[Path], None]


def rewritten(name: str, content: bytes | str) -> Change:
    """Another content of a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def removed(*names: str) -> Change:
    """Files taken away."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def configured(**keys: Any) -> Change:
    """Other keys in its config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def cut(name: str, share: float) -> Change:
    """Only the first part of a file."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def pickled(folder: Path) -> None:
    """Weights as a pickle, which would run `touch owned`."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


def sharded(folder: Path) -> None:
    """An index that names a shard more than there is."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def an_adapter(folder: Path) -> None:
    """What PEFT saves."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def without_a_tensor(folder: Path) -> None:
    """Whole as a file, but a layer is missing."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "layers.2.mlp" not in name}, folder / "model.safetensors")


def a_pipe(name: str) -> Change:
    """A pipe where a file belongs: who opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def a_socket(name: str) -> Change:
    """A socket where a file belongs."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as bound:  # the path may be too long for one
            bound.bind(name)

    return change


def a_folder_there(name: str) -> Change:
    """A folder where a file belongs."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def a_device(name: str) -> Change:
    """A link to a file without an end."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return change


GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_positions": 16,
    "max_position_embeddings": 16,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
OPT = {"model_type": "opt", "max_position_embeddings": 16, "ffn_dim": 64, "word_embed_proj_dim": 128}
ENCODERS = ("bert", "roberta", "electra", "xlm-roberta", "camembert", "ernie", "rembert", "megatron-bert")
SIZES = ("num_hidden_layers", "num_layers", "n_layer")
ODD_PLACES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
NEVER_ENDS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
LONG = "n" * 300

FIT = [
    of_model(
        "data.max_length=512: a row has ",
        configured(**GPT2),
        *("data=local", "data.format=prompt_completion", "data.path=rows.jsonl", "data.max_length=512"),
        files={"rows.jsonl": lines(good={"prompt": "a long question " * 20, "completion": "yes"})},
    ),
    of_model(
        "and the model has learned 16 positions; set data.max_length=16",
        configured(**OPT),
        *("data=local", "data.format=prompt_completion", "data.path=rows.jsonl"),
        files={"rows.jsonl": lines(good={"prompt": "a long question " * 20, "completion": "yes"})},
    ),
    *(
        of_model(
            f"model.path='./model': {kind} is an encoder: its tokens see those that they are to predict",
            configured(model_type=kind, architectures=[], num_hidden_layers=2),
        )
        for kind in ENCODERS
    ),
    *(
        of_model(
            f"model.path='./model': config.json has {key}={count:.0e}, more than 2000",
            configured(**{key: count}),
            process=key == "num_layers" and count == 10**9,
        )
        for key in SIZES
        for count in (2001, 10**6, 10**9, 10**30)
    ),
    of_model("config.json has num_hidden_layers=1e+09", configured(text_config={"num_hidden_layers": 10**9})),
    of_model("num_local_experts=1e+09, more than 2000", configured(num_local_experts=10**9)),
    of_model(
        "parameters: their weights need ",
        configured(num_hidden_layers=20, hidden_size=65536, intermediate_size=2**18, vocab_size=200000),
    ),
    of_model("parameters: their weights need ", configured(hidden_size=2**20, num_attention_heads=2**15)),
    of_model("parameters: their weights need ", configured(vocab_size=2**40)),
    of_model(
        "parameters: their weights and gradients need ",
        configured(num_hidden_layers=20, hidden_size=65536, intermediate_size=2**18),
        "finetune=full",
    ),
    sweep("model.attn_implementation='flex_attention': needs a CUDA GPU", "model.attn_implementation=flex_attention"),
    *(
        of_model(
            f"model.path='./model': its weights are quantized ({method})",
            configured(quantization_config={"quant_method": method, **more}),
        )
        for method, more in (
            ("gptq", {"bits": 4}),
            ("awq", {"bits": 4}),
            ("aqlm", {}),
            ("frobnicated", {}),
        )
    ),
    of_model(
        "its weights are quantized (gptq) and cannot be trained; use finetune=lora",
        configured(quantization_config={"quant_method": "gptq", "bits": 4}),
        "finetune=full",
    ),
    of_model(
        "rows.jsonl:1: the chat template refuses it: it takes more than 5 s",
        rewritten("chat_template.jinja", NEVER_ENDS),
        *CHAT,
        files={"rows.jsonl": TALKS},
    ),
    *(
        of_model(f"model.path='./model': {name} is not a file", kind(name))
        for name in ODD_PLACES
        for kind in (a_pipe, a_socket, a_folder_there, a_device)
        if name != "config.json"
    ),
    *(
        of_model("model.path='./model': not a model folder: it has no config.json", kind("config.json"))
        for kind in (a_pipe, a_socket, a_folder_there, a_device)
    ),
    *(
        sweep(f"model.path={path!r}: no such folder", "model=local", f"model.path={path}")
        for path in ("~nosuchuser/model", "~nosuchuser", f"./{LONG}", f"/{LONG}/{LONG}", f"a/{LONG}/b/c")
    ),
    sweep("model.path='/proc/self': not a model folder", "model=local", "model.path=/proc/self"),
]

TABLE = [
    *FIT,
    sweep("model.path='./nowhere': no such folder", "model=local", "model.path=./nowhere", process=True),
    sweep("model.path='a/b/c': no such folder", "model=local", "model.path=a/b/c"),
    sweep("model.path='somebody/model': cannot be loaded", "model=local", "model.path=somebody/model"),
    sweep("model.path: missing", "model=local"),
    sweep("model.path='.': not a model folder", "model=local", "model.path=."),
    sweep("model.path='file': not a model folder", "model=local", "model.path=file", files={"file": "x"}),
    sweep("model.path=***: holds a secret", "model=local", "model.path=" + "hf_" + "a1B2" * 9),
    of_model("model.path='./model': not a model folder", removed("config.json")),
    of_model("config.json is not JSON", rewritten("config.json", '{"model_type": "llama",')),
    of_model("config.json is not JSON", rewritten("config.json", "")),
    of_model("config.json is not a mapping", rewritten("config.json", "[]")),
    of_model("model.path='./model': cannot be loaded", configured(model_type="frobnicator")),
    of_model("model.path='./model': cannot be loaded", configured(model_type="vit", architectures=["ViTModel"])),
    of_model("model.path='./model': cannot be loaded", configured(hidden_size="large")),
    of_model("model.path='./model': cannot be loaded", configured(hidden_size=192, head_dim=48)),
    of_model(
        "model.path='./model': cannot be loaded",
        configured(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
    ),
    of_model("no .safetensors file there; other weight formats are not loaded", pickled),
    of_model("no .safetensors file there", removed("model.safetensors")),
    of_model(
        "model.safetensors has 2003176 bytes and should have 4006352", cut("model.safetensors", 0.5), process=True
    ),
    of_model("model.safetensors is not a safetensors file", cut("model.safetensors", 0.0002)),
    of_model("model.safetensors is not a safetensors file", rewritten("model.safetensors", b"\x00" * 4096)),
    of_model("model.safetensors is not a safetensors file", rewritten("model.safetensors", b"")),
    of_model(
        "model.safetensors is a Git LFS pointer",
        rewritten("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4006352\n"),
    ),
    of_model("model-00002-of-00002.safetensors is missing", sharded),
    of_model("model.path='./model': its weights lack", without_a_tensor),
    of_model("model.path='./model': this is an adapter", an_adapter),
    of_model("no tokenizer there", removed("tokenizer.json", "tokenizer_config.json")),
    of_model("no tokenizer there", removed("tokenizer.json")),
    of_model("tokenizer.json is not JSON", rewritten("tokenizer.json", '{"version": "1.0"')),
    of_model("model.path='./model': cannot be loaded", rewritten("tokenizer.json", '{"version": "1.0"}')),
    of_model(
        "rows.jsonl:1: the chat template refuses it",
        rewritten("chat_template.jinja", "{% for message in messages %}{{"),
        *CHAT,
        files={"rows.jsonl": TALKS},
    ),
    of_model(
        "rows.jsonl:1: the chat template refuses it",
        rewritten("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        *CHAT,
        files={"rows.jsonl": TALKS},
    ),
    of_model(
        "data.format=messages: conversations need a chat template",
        removed("chat_template.jinja"),
        *CHAT,
        files={"rows.jsonl": TALKS},
    ),
    of_model("model.path='./model': cannot be loaded", configured(vocab_size=1024)),
]

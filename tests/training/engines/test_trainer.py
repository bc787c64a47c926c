"""The reference engine: it trains what the config says, as a plain loop would, and reports truly how it ended."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler, set_seed

import lrsweep.training.model as model_module
from lrsweep.config.schema import SweepConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.loading import collate
from lrsweep.training.engines import Outcome
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.inputs import inputs
from lrsweep.training.model import check_quantization, load_model, make_trainable
from lrsweep.training.model_folder import check_path
from tests.recorder import Recorder, tiny
from tests.recorder import train as train_with

config = tiny


def train(folder: Path, *configs: SweepConfig, stop_at: int | None = None) -> Recorder:
    return train_with(TrainerEngine(), folder, *configs, stop_at=stop_at)


def plain_loop(config: SweepConfig) -> tuple[list[float], list[float]]:
    """The trial as a dozen lines of torch: losses and gradient norms by step. Batches in Trainer's own order."""
    tokenizer, data = inputs(config.model, config.data)
    model = make_trainable(load_model(config.model, config.finetune), config.finetune, config.training.seed).train()
    anchor = load_model(config.model, config.finetune).eval()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    undecayed = [p for n, p in model.named_parameters() if p.requires_grad and "norm" in n]
    decayed = [p for p in weights if all(p is not other for other in undecayed)]
    o = config.optimizer
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    if (ratio := config.finetune.loraplus_lr_ratio) is not None:
        of = {
            b: [p for n, p in model.named_parameters() if p.requires_grad and ("lora_B" in n) == b]
            for b in (False, True)
        }
        groups = [{"params": of[b], "weight_decay": o.weight_decay, "lr": o.lr * (ratio if b else 1)} for b in of]
    if o.lr_groups:
        ((part, factor),) = o.lr_groups.items()
        groups = [
            {"params": [p], "weight_decay": o.weight_decay, "lr": o.lr * (factor if part in n else 1)}
            for n, p in model.named_parameters()
            if p.requires_grad
        ]
    # In bfloat16, the fused form rounds less often, and Trainer uses it.
    fused = config.finetune.pure_bf16
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=o.lr, betas=o.betas, eps=o.eps, fused=fused)
    t = config.training
    schedule = get_scheduler(
        config.scheduler.name, optimizer, config.scheduler.warmup(t.schedule_steps), t.schedule_steps
    )
    generator = torch.Generator().manual_seed(t.seed)
    order = torch.randperm(len(data.train), generator=generator).tolist()
    losses, norms = [], []
    per_step = t.batch_size * t.gradient_accumulation_steps
    for step in range(t.max_steps):
        rows = [data.train[i] for i in order[step * per_step : (step + 1) * per_step]]
        tokens = sum(label != -100 for row in rows for label in row.labels[1:])
        total = 0.0
        for start in range(0, per_step, t.batch_size):
            batch = collate(rows[start : start + t.batch_size], tokenizer.pad_token_id)
            labels = batch.pop("labels")[:, 1:]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
                logits = model(**batch).logits[:, :-1]
            logits = logits.float() if config.model.dtype == "bfloat16" else logits
            per_token = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
            )
            with torch.no_grad():
                factors = {"cross_entropy": torch.ones_like(per_token), "dft": torch.exp(-per_token)}
                if t.loss == "eaft":
                    likely = logits.flatten(0, 1).sort(descending=True).values[:, :20].softmax(-1)
                    factors["eaft"] = (-(likely * likely.log()).sum(-1) / 3.0) ** t.eaft_alpha
                if t.loss == "asft":
                    near = torch.log_softmax(anchor(**batch).logits[:, :-1].flatten(0, 1), -1)
            if t.loss == "asft":
                away = (near.exp() * (near - torch.log_softmax(logits.flatten(0, 1), -1))).sum(-1)
                counted = (labels.flatten() != -100).double()
                both = factors["dft"] * per_token + t.asft_alpha * away * counted
                (both.sum() / counted.sum()).backward()  # type: ignore[no-untyped-call]
            else:
                ((factors[t.loss] * per_token).sum() / tokens).backward()
            total += per_token.sum().item() / tokens
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, t.max_grad_norm)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, norms


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune=lora",),
        ("finetune.loraplus_lr_ratio=16", "optimizer.weight_decay=0.1"),
        ("optimizer.lr_groups={down_proj: 0.1}", "optimizer.weight_decay=0.1"),
        ("finetune=full", "optimizer.weight_decay=0.1"),
        ("finetune=freeze", "finetune.trainable_layers=1"),
        ("training.loss=dft", "training.gradient_accumulation_steps=2"),
        ("training.loss=eaft", "training.eaft_alpha=0.5"),
        ("training.loss=asft", "training.asft_alpha=2", "finetune=full", "training.gradient_accumulation_steps=2"),
        ("training.gradient_accumulation_steps=2", "optimizer.betas=[0.8,0.95]", "training.seed=3"),
        ("training.horizon=30", "scheduler=linear", "training.max_grad_norm=0.1"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_trial_is_what_a_plain_loop_gives(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    trial = config("model.dtype=float64", *overrides)
    host = train(tmp_path, trial)
    losses, norms = plain_loop(trial)
    assert list(host.curve("loss").values()) == pytest.approx(losses, abs=1e-6)  # Trainer sums what it logs in float32
    assert list(host.curve("grad_norm").values()) == pytest.approx(norms, rel=1e-10)
    assert host.outcomes == [Outcome(0, 6, "complete")]


@pytest.mark.parametrize("mode", ["full", "freeze"])
def test_weights_in_bf16_lose_what_a_plain_loop_in_bf16_loses(tmp_path: Path, mode: str) -> None:
    both = ("model.dtype=bfloat16", f"finetune={mode}")
    trials = [config(*both, "finetune.pure_bf16=true"), config(*both)]
    host = train(tmp_path, *trials)
    pure, usual = (list(host.curve("loss", number).values()) for number in (0, 1))
    assert pure == pytest.approx(plain_loop(trials[0])[0], rel=1e-6)
    assert usual == pytest.approx(plain_loop(trials[1])[0], rel=1e-6)
    assert pure != pytest.approx(usual, rel=1e-3)


def test_adapters_are_not_in_bf16(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pure_bf16=true is for mode full and freeze"):
        config("finetune.pure_bf16=true")


def test_every_step_is_heard_and_the_last_is_evaluated(tmp_path: Path) -> None:
    host = train(tmp_path, config("training.eval_every=4"))
    assert (
        list(host.curve("loss"))
        == list(host.curve("grad_norm"))
        == list(host.curve("learning_rate"))
        == [1, 2, 3, 4, 5, 6]
    )
    assert list(host.curve("eval_loss")) == [0, 4, 6]


def test_the_same_trial_twice_is_the_same_to_the_bit(tmp_path: Path) -> None:
    trial = config("finetune.dropout=0.1")
    host = train(tmp_path, trial, trial, config("finetune.dropout=0.1", "training.seed=1"))
    assert host.curve("loss", 0) == host.curve("loss", 1)
    assert host.curve("eval_loss", 0) == host.curve("eval_loss", 1)
    assert host.curve("loss", 0) != host.curve("loss", 2)


def test_eval_loss_weighs_every_token_the_same_whatever_the_batch(tmp_path: Path) -> None:
    host = train(tmp_path, config("training.eval_batch_size=16"), config("training.eval_batch_size=3"))
    assert host.curve("eval_loss", 0) == pytest.approx(host.curve("eval_loss", 1), rel=1e-6)


def test_horizon_keeps_the_real_runs_schedule(tmp_path: Path) -> None:
    host = train(
        tmp_path, config("training.horizon=60", "scheduler.warmup_ratio=null"), config("scheduler.warmup_ratio=null")
    )
    at = {step: 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 60)) for step in range(1, 7)}
    assert host.curve("learning_rate", 0) == pytest.approx(at, rel=1e-9)
    assert host.curve("learning_rate", 1)[6] < 0.1 * at[6]


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune.dora=true",),
        pytest.param(("finetune.rslora=true", "finetune.r=4"), marks=pytest.mark.thorough),
        pytest.param(("finetune.target_modules=[q_proj,v_proj]",), marks=pytest.mark.thorough),
        pytest.param(("training.gradient_checkpointing=true",), marks=pytest.mark.thorough),
        pytest.param(("data.packing=true",), marks=pytest.mark.thorough),
        pytest.param(("optimizer=sgd",), marks=pytest.mark.thorough),
        ("optimizer.name=adafactor",),
        pytest.param(("optimizer.name=rmsprop",), marks=pytest.mark.thorough),
        ("scheduler.name=warmup_stable_decay", "scheduler.kwargs={num_decay_steps: 2}"),
        ("scheduler.name=reduce_lr_on_plateau", "scheduler.warmup_ratio=null"),
        ("model.dtype=bfloat16",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_option_trains(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    host = train(tmp_path, config(*overrides))
    assert host.outcomes == [Outcome(0, 6, "complete")]
    evals = host.curve("eval_loss")
    assert evals[6] < evals[0]


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    host = train(tmp_path, config(), config("training.gradient_checkpointing=true"))
    assert host.curve("loss", 0) == pytest.approx(host.curve("loss", 1), abs=1e-6)


def test_a_stopped_trial_ends_at_that_step(tmp_path: Path) -> None:
    host = train(tmp_path, config(), stop_at=3)
    assert host.outcomes == [Outcome(0, 3, "stopped")]
    assert max(host.curve("loss")) == 3


def test_a_number_that_is_not_finite_ends_the_trial_as_diverged(tmp_path: Path) -> None:
    overrides = (
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "training.max_grad_norm=0",
        "scheduler=constant",
        "finetune=full",
    )
    host = train(tmp_path, config(*overrides), config())
    diverged, healthy = host.outcomes
    assert diverged.status == "diverged"
    assert diverged.step < 6
    assert "nan" in diverged.reason or "inf" in diverged.reason
    assert healthy == Outcome(1, 6, "complete")
    # Trainer's default would have logged the NaN as 0.0.
    assert not any(value == 0.0 for value in host.curve("loss", 0).values())


def test_an_error_ends_its_trial_and_no_other(tmp_path: Path) -> None:
    host = train(tmp_path, config("scheduler.name=cosine_with_min_lr"), config())
    assert host.outcomes[0].status == "failed"
    assert "min_lr" in host.outcomes[0].reason
    assert host.outcomes[1].status == "complete"


def test_the_adapter_is_peft_and_gives_the_same_loss(tmp_path: Path) -> None:
    from peft import PeftModel

    from lrsweep.training.evaluation import evaluate

    trial = config("training.save_adapter=true")
    host = train(tmp_path, trial)
    assert {path.name for path in (tmp_path / "0" / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = LlamaForCausalLM.from_pretrained(BASE)
    tokenizer, data = inputs(trial.model, trial.data)
    loaded = PeftModel.from_pretrained(base, tmp_path / "0" / "adapter")
    assert evaluate(loaded, data.evaluation, 16, tokenizer.pad_token_id).mean == pytest.approx(
        host.curve("eval_loss")[6], abs=1e-6
    )


def test_what_is_trained_is_what_the_mode_says() -> None:
    def trained(*overrides: str) -> set[str]:
        c = config(*overrides)
        model = make_trainable(load_model(c.model, c.finetune), c.finetune, 0)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert all("lora_" in name for name in trained("finetune=lora"))
    assert any("embed_tokens" in name for name in trained("finetune=full"))
    last = trained("finetune=freeze", "finetune.trainable_layers=1")
    assert last
    assert all(".layers.3." in name for name in last)


def test_initial_adapters_are_stock_pefts_for_the_seed() -> None:
    from peft import LoraConfig, get_peft_model

    ours = config("training.seed=7")
    model = make_trainable(load_model(ours.model, ours.finetune), ours.finetune, 7)
    set_seed(7)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    stock = dict(get_peft_model(LlamaForCausalLM.from_pretrained(BASE), lora).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stock[name]), name


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("finetune.target_modules=[no_such]",), "finetune.target_modules=('no_such',)"),
        (("finetune=freeze", "finetune.trainable_layers=9"), "finetune.trainable_layers=9: the model has 4 layers"),
    ],
)
def test_parts_the_model_lacks_are_refused_by_name(overrides: tuple[str, ...], said: str) -> None:
    c = config(*overrides)
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
        make_trainable(load_model(c.model, c.finetune), c.finetune, 0)


def test_other_weight_formats_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_path(config(f"model.path={tmp_path}/none").model)
    with pytest.raises(InputError, match=r"has no config\.json"):
        check_path(config(f"model.path={tmp_path}").model)
    LlamaConfig().save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no \.safetensors"):
        check_path(config(f"model.path={tmp_path}").model)


@pytest.mark.parametrize("double", [True, False])
def test_the_constants_of_4_bits_are_quantized_as_the_config_says(double: bool) -> None:
    c = config("finetune=qlora", f"model.double_quantization={double}")
    assert model_module._quantization(c.model, torch.bfloat16).bnb_4bit_use_double_quant is double


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no CUDA")
def test_a_quantized_base_is_refused_without_cuda() -> None:
    c: Any = config("finetune=qlora")
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        check_quantization(c.model, c.finetune)

"""Parameters chosen by patterns: the same training as a stock Trainer whose parameters a loop has frozen."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from lrsweep.config.patterns import ParameterPattern
from lrsweep.config.schema import SweepConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.loading import collate
from lrsweep.training.engines import Outcome
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.evaluation import evaluate
from lrsweep.training.inputs import inputs
from lrsweep.training.model import check_trainable, load_model, make_trainable
from lrsweep.training.plain_loop import PlainLoop
from tests.recorder import Recorder, tiny, train

EMBEDDINGS = "model.embed_tokens.weight"


# Measured with Axolotl's own substitution, re.sub(r"\.(?!\+)", "\\.", pattern), and re.match.
@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        # A dot is a dot, at the start of a name only, whether or not the pattern begins with ^.
        (
            "^model.norm.weight$",
            ["model.norm.weight"],
            ["modelXnorm.weight", "model.norm.weights", "a.model.norm.weight"],
        ),
        ("model.norm", ["model.norm.weight", "model.norms"], ["modelXnorm.weight", "a.model.norm.weight"]),
        ("lm_head", ["lm_head.weight", "lm_heads"], ["model.lm_head.weight"]),
        ("layers.[0-7].", ["layers.7.weight"], ["layers.8.weight", "layers.10.weight", "layers.7"]),
        ("layers.2[0-9]+.mlp", ["layers.20.mlp"], ["layers.2.mlp", "layers.20xmlp"]),
        # Any number of dots, not any text: it names whatever starts with what is before them.
        ("model.layers.*", ["model.layers.0.weight", "model.layersX"], ["model.layer.0"]),
        ("a.*b", ["ab", "a.b", "a..b"], ["axb"]),
        ("a.?b", ["ab", "a.b"], ["axb"]),
        # Before a plus it stays what it is in regular expressions.
        ("a.+b", ["a.b", "axxb"], ["ab"]),
        ("a.+?b", ["axb"], ["ab"]),
        # A dot with a backslash becomes a backslash and any character.
        (r"a\.b", [r"a\.b", r"a\xb"], ["a.b"]),
        ("[.]x", [".x"], [r"\x"]),
    ],
)
def test_a_pattern_means_what_it_means_in_axolotl(pattern: str, matched: list[str], others: list[str]) -> None:
    names = ParameterPattern.parse(pattern).names
    assert [name for name in (*matched, *others) if names.match(name)] == matched


@pytest.mark.parametrize(
    ("pattern", "expression", "rows"),
    [
        ("^a.b$[:32000]", r"^a\.b$", (0, 32000)),
        ("a[4:]", "a", (4, None)),
        ("a[4:6]", "a", (4, 6)),
        ("a[5]", "a", (5, 6)),
        # Not a set of characters: one row.
        ("layers.[01]", r"layers\.", (1, 2)),
        ("a[]", "a", (0, None)),
        ("a[:]", "a", (0, None)),
        ("a[1][2]", "a[1]", (2, 3)),
        ("[5]", "[5]", None),
        ("layers.[0-7]", r"layers\.[0-7]", None),
        ("a[5].", r"a[5]\.", None),
    ],
)
def test_a_range_at_the_end_is_no_part_of_the_expression(
    pattern: str, expression: str, rows: tuple[int, int | None] | None
) -> None:
    found = ParameterPattern.parse(pattern)
    assert (found.names.pattern, found.rows) == (expression, rows)


def frozen_by_hand(trained: Callable[[str], bool], kept: list[int] | None) -> PreTrainedModel:
    """The model with all parameters frozen but some; of the embeddings, only these rows get gradients."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained(name)
        if name == EMBEDDINGS and kept is not None:
            mask = torch.zeros(len(parameter), 1, dtype=torch.float64)
            mask[kept] = 1
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    return model


def stock(config: SweepConfig, model: PreTrainedModel, folder: Path) -> tuple[list[dict[str, float]], float]:
    """What a stock Trainer logs of a trial, and the loss on the held-out rows after it."""
    tokenizer, data = inputs(config.model, config.data)
    training, optimizer = config.training, config.optimizer

    # transformers' own casts the logits to float32.
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        mean: torch.Tensor = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / num_items_in_batch
        return mean

    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=training.max_steps,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=training.max_grad_norm,
            lr_scheduler_type=config.scheduler.name,
            warmup_steps=config.scheduler.warmup(training.max_steps),
            seed=training.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=True,
        ),
        train_dataset=data.train,
        data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
        compute_loss_func=loss,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return logs, evaluate(model, data.evaluation, 16, tokenizer.pad_token_id).mean


RANGES = '["^model.embed_tokens.weight$[100:300]","model.embed_tokens[250:400]","^model.embed_tokens","model.layers.3"]'


@pytest.mark.parametrize(
    ("patterns", "trained", "kept"),
    [
        ('["^model.layers.1.","model.norm"]', lambda name: "layers.1." in name or name == "model.norm.weight", None),
        pytest.param(
            '["model.layers.[0-9]+.mlp.down_proj.weight$"]',
            lambda name: "down_proj" in name,
            None,
            marks=pytest.mark.thorough,
        ),
        ('["^model.embed_tokens.weight$[:500]"]', lambda name: name == EMBEDDINGS, list(range(500))),
        (RANGES, lambda name: name == EMBEDDINGS or "layers.3." in name, list(range(100, 400))),
    ],
    ids=["layer", "projections", "rows", "rows and layer"],
)
def test_patterns_train_what_a_loop_leaves_unfrozen(
    tmp_path: Path, patterns: str, trained: Callable[[str], bool], kept: list[int] | None
) -> None:
    """The decay is strong: frozen rows decay too, and the output layer, which is tied to them, shows it."""
    base = ("model.dtype=float64", "finetune=freeze", f"finetune.unfrozen_parameters={patterns}")
    config = tiny(*base, "optimizer.weight_decay=10", "training.gradient_accumulation_steps=2")
    others = [tiny(*base, "optimizer.lr=1e-2", "training.gradient_accumulation_steps=2")] * 2
    logs, held_out = stock(config, frozen_by_hand(trained, kept), tmp_path / "stock")
    for name, engine, neighbours in (
        ("trainer", TrainerEngine(), []),
        ("packed", PackedEngine(1, rank=8), []),
        ("packed with others", PackedEngine(3, rank=8), others),
    ):
        host = train(engine, tmp_path / name, config, *neighbours)
        assert min(host.outcomes, key=lambda outcome: outcome.number) == Outcome(0, 6, "complete"), name
        norms, losses = list(host.curve("grad_norm").values()), list(host.curve("loss").values())
        assert norms == pytest.approx([log["grad_norm"] for log in logs], rel=1e-10), name
        # Trainer sums what it logs in float32.
        assert losses == pytest.approx([log["loss"] for log in logs], abs=1e-6), name
        assert host.curve("eval_loss")[6] == pytest.approx(held_out, rel=1e-10), name


def test_frozen_rows_decay_and_do_not_learn() -> None:
    config = tiny(
        "model.dtype=float64",
        "finetune=freeze",
        "finetune.unfrozen_parameters=['model.embed_tokens[7]']",
        "optimizer.weight_decay=0.5",
    )
    loop = PlainLoop(config)
    (weight,) = loop.weights
    before = weight.detach().clone()
    loop.gradients([[0, 1]])
    loop.step(lr=0.1)
    others = [row for row in range(len(before)) if row != 7]
    assert torch.allclose(weight[others], before[others] * (1 - 0.1 * 0.5), rtol=1e-12, atol=0)
    assert not torch.allclose(weight[7], before[7] * (1 - 0.1 * 0.5))


def test_weights_in_bf16_and_patterns_go_together(tmp_path: Path) -> None:
    pattern = "finetune.unfrozen_parameters=['model.embed_tokens[:1000]']"
    config = tiny("model.dtype=bfloat16", "finetune=freeze", "finetune.pure_bf16=true", pattern)
    host: Recorder = train(PackedEngine(2, rank=8, fallback=TrainerEngine), tmp_path, config)
    assert [(outcome.status, outcome.engine) for outcome in host.outcomes] == [("complete", "trainer")]
    assert host.curve("eval_loss")[6] < host.curve("eval_loss")[0]
    model = make_trainable(load_model(config.model, config.finetune), config.finetune, 0)
    assert [(n, p.dtype) for n, p in model.named_parameters() if p.requires_grad] == [(EMBEDDINGS, torch.bfloat16)]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        # The output layer is tied to the embeddings, which have the name.
        (
            "[lm_head]",
            "'lm_head': the start of no parameter's name, such as model.embed_tokens.weight, ",
        ),
        (r"['model\\.layers']", "the start of no parameter's name"),
        ("['model.embed_tokens[:2049]']", "'model.embed_tokens[:2049]': model.embed_tokens.weight has 2048 rows; "),
        ("['model.embed_tokens[2048:]']", "'model.embed_tokens[2048:]': model.embed_tokens.weight has 2048 rows; "),
        ("['model.[:500]']", "'model.[:500]': model.layers.0.self_attn.q_proj.weight has 128 rows; "),
    ],
)
def test_patterns_that_name_nothing_are_refused_before_any_weight_is_loaded(patterns: str, said: str) -> None:
    config = tiny("finetune=freeze", f"finetune.unfrozen_parameters={patterns}")
    for check in (
        lambda: check_trainable(config.model, config.finetune, config.optimizer),
        lambda: make_trainable(load_model(config.model, config.finetune), config.finetune, 0),
    ):
        with pytest.raises(InputError, match=r"^finetune\.unfrozen_parameters: ") as refused:
            check()
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", ["model.(", "model[5:5]", "model[6:5]", "(a+)+b"])
def test_patterns_that_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"^finetune\.unfrozen_parameters\.0=") as refused:
        tiny("finetune=freeze", f"finetune.unfrozen_parameters=['{pattern}']")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_patterns_are_for_freeze(mode: str) -> None:
    with pytest.raises(InputError, match=f"unfrozen_parameters is for mode freeze, not {mode}; set finetune=freeze"):
        tiny(f"finetune={mode}", "finetune.unfrozen_parameters=[model]")


def test_a_pattern_that_names_nothing_beside_others_is_ignored() -> None:
    """A model with tied embeddings has no output layer of its own, and a list for other models may have it."""
    config = tiny("finetune=freeze", "finetune.unfrozen_parameters=[model.embed_tokens,lm_head]")
    model = make_trainable(load_model(config.model, config.finetune), config.finetune, 0)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [EMBEDDINGS]

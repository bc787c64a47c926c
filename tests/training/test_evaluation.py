"""The eval loss: transformers' own numbers, without the logits of a whole batch."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen2Config

from lrsweep.training.data.collate import Example
from lrsweep.training.evaluation import eval_batches, evaluate

VOCABULARY, TOKENS, ROWS = 8192, 64, 8


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most elements of a tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.elements = max(self.elements, found.numel())
        return found


class Scaled(nn.Module):
    """An output layer whose logits are changed after it: only the whole model knows them."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(hidden) / 2
        return logits


@pytest.mark.parametrize("kind", ["base", "adapter", "own head"])
@torch.no_grad()
def test_the_losses_are_transformers_own_and_the_logits_of_a_batch_never_exist(kind: str) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    if kind == "own head":
        model.lm_head = Scaled(model.lm_head)
    lengths = [TOKENS - 3 * i for i in range(ROWS)]
    ids = [torch.randint(1, VOCABULARY, (length,)).tolist() for length in lengths]
    examples = [Example(tuple(row), (-100,) * 5 + tuple(row[5:])) for row in ids]
    with Largest() as largest:  # type: ignore[no-untyped-call]
        found = evaluate(model.train(), examples, ROWS, 0)
    assert largest.elements <= ROWS * TOKENS * VOCABULARY / 2
    assert model.training
    (batch,) = eval_batches(examples, ROWS, 0)
    logits = model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    assert found.sums == pytest.approx(losses.sum(1).tolist(), rel=1e-12)
    assert found.tokens == (labels != -100).sum(1).tolist()

"""Run inside a tool's own environment, next to its script: the values of TrainingArguments, or of a tool's subclass."""

from typing import Any


def said(training: Any) -> dict[str, Any]:
    """Its fields that the tests look at."""
    return {
        "lr": training.learning_rate,
        "betas": [training.adam_beta1, training.adam_beta2],
        "eps": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "warmup": training.get_warmup_steps(1000),
        "schedule": [str(training.lr_scheduler_type.value), training.lr_scheduler_kwargs or {}],
        "batch": [training.per_device_train_batch_size, training.gradient_accumulation_steps],
        "length": [training.max_steps, training.num_train_epochs],
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
    }

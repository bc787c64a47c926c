"""Random configs of each tool, of keys that a sweep can take over, in the spellings that people use."""

from typing import Any

from hypothesis import strategies as st

_rates = st.floats(1e-8, 1.0, allow_nan=False) | st.sampled_from([1e-4, 5e-5, 2e-5, "1e-4", "3.0e-5"])
_share = st.floats(0, 0.99, allow_nan=False) | st.sampled_from([0.0, 0.1])
_counts = st.integers(1, 512)
_flags = st.booleans()
# What YAML readers differ about, where a text is meant.
_texts = st.sampled_from(
    ["yes", "off", "n", "1_000", "0o7", "1:30", "2024-01-01", "1e-5", ".5", "null", "a # b", "", "~", "=", "x"]
)
_modules = st.lists(st.sampled_from(["q_proj", "k_proj", "v_proj", "up_proj"]), min_size=1, unique=True)
_schedules = st.sampled_from(["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"])
_adamw = st.sampled_from(["adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "adamw_bnb_8bit"])
_kwargs: st.SearchStrategy[dict[str, float] | None] = (
    st.none() | st.just({}) | st.fixed_dictionaries({"lr_end": st.floats(1e-9, 1e-3)})
)


def _null(strategy: Any) -> Any:
    return st.none() | strategy


_arguments: dict[str, Any] = {
    "learning_rate": _rates,
    "weight_decay": _share,
    "adam_beta1": _share,
    "adam_beta2": _share,
    "adam_epsilon": st.floats(1e-12, 1e-3),
    "max_grad_norm": st.floats(0, 10),
    "lr_scheduler_type": _schedules,
    "lr_scheduler_kwargs": _kwargs,
    "warmup_steps": st.integers(0, 50),
    "warmup_ratio": _share,
    "per_device_train_batch_size": _counts,
    "gradient_accumulation_steps": _counts,
    "seed": st.integers(0, 2**31 - 1),
    "optim": _adamw,
    "max_steps": st.just(-1) | st.integers(1, 10**6),
    "num_train_epochs": st.floats(0.1, 20),
    "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
    "eval_steps": st.integers(1, 5000) | st.floats(0.01, 0.5),
    "per_device_eval_batch_size": _counts,
    "bf16": _flags,
    "output_dir": _texts,
    "run_name": _texts,
    "logging_steps": _counts,
    "save_strategy": st.sampled_from(["no", "steps"]),
    "report_to": _texts | st.lists(_texts),
    "ddp_timeout": _counts,
    "logging_dir": st.floats(allow_nan=False, allow_infinity=False) | _texts,
}


def _config(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "llamafactory": _config(
        {"model_name_or_path": st.sampled_from(["m", "org/model"]), "dataset": st.sampled_from(["a", "a,b", "a, b"])},
        _arguments
        | {
            "stage": st.just("sft"),
            "finetuning_type": st.sampled_from(["lora", "full", "freeze"]),
            "lora_rank": _counts,
            "lora_alpha": _null(_counts),
            "lora_dropout": _share,
            "lora_target": st.just("all") | _modules.map(",".join),
            "use_dora": _flags,
            "use_rslora": _flags,
            "freeze_trainable_layers": st.integers(1, 9),
            "dataset_dir": st.just("d"),
            "template": _null(st.sampled_from(["qwen", "llama3", "default"])),
            "cutoff_len": st.integers(2, 9999),
            "max_samples": _null(_counts),
            "val_size": _share,
            "neat_packing": _flags,
            "quantization_bit": _null(st.just(4)),
            "flash_attn": st.sampled_from(["auto", "sdpa", "fa2", "disabled"]),
            "disable_gradient_checkpointing": _flags,
            "double_quantization": _flags,
            "tokenized_path": st.just("not/there"),
            "use_dft_loss": _flags,
            "use_eaft_loss": _flags,
            "eaft_alpha": st.floats(0, 9),
            "trust_remote_code": _flags,
            "plot_loss": _flags,
            "model_revision": st.sampled_from(["main", "v2"]),
        },
    ),
    "transformers": _config({}, _arguments | {"gradient_checkpointing": _flags, "model_name_or_path": st.just("m")}),
    "trl": _config(
        {
            "model_name_or_path": st.just("m"),
            "dataset_name": st.sampled_from(["org/data", "rows.jsonl"]),
            "lora_target_modules": st.sampled_from(["all-linear", ["all-linear"]]) | _modules,
        },
        _arguments
        | {
            "use_peft": _flags,
            "lora_r": _counts,
            "lora_alpha": _counts,
            "lora_dropout": _share,
            "use_dora": _flags,
            "use_rslora": _flags,
            "max_length": st.integers(2, 9999),
            "packing": _flags,
            "gradient_checkpointing": _flags,
            "dataset_config": _null(st.just("main")),
            "dataset_train_split": st.sampled_from(["train", "sft"]),
            "dataset_test_split": st.just("test"),
            "assistant_only_loss": _flags,
            "attn_implementation": _null(st.just("sdpa")),
            "model_revision": st.just("main"),
            "load_in_4bit": _flags,
            "use_bnb_nested_quant": _flags,
            "loss_type": st.sampled_from(["nll", "chunked_nll", "dft"]),
            "dtype": st.just("float32"),
        },
    ),
    "ms-swift": _config(
        {
            "model": st.just("./m"),
            "dataset": st.sampled_from(["rows.jsonl", ["rows.csv"]]),
            "max_length": st.integers(2, 9999),
            "template_backend": st.just("jinja"),
        },
        _arguments
        | {
            "tuner_type": st.just("lora"),
            "torch_dtype": _null(st.sampled_from(["float32", "bfloat16"])),
            "lora_rank": _counts,
            "lora_alpha": _counts,
            "lora_dropout": _share,
            "target_modules": st.just(["all-linear"]) | _modules,
            "use_dora": _flags,
            "use_rslora": _flags,
            "packing": _flags,
            "truncation_strategy": _null(st.sampled_from(["delete", "right"])),
            "split_dataset_ratio": _share,
            "gradient_checkpointing": _flags,
        },
    ),
    "axolotl": _config(
        {
            "base_model": st.just("m"),
            "learning_rate": _rates,
            "lora_r": _counts,
            "lora_alpha": _counts,
            "lora_target_linear": st.just(True),
            "attn_implementation": st.sampled_from(["flash_attention_2", "xformers"]),
            "datasets": st.sampled_from(
                [
                    [{"path": "org/data", "type": "chat_template"}],
                    [{"path": "rows.jsonl", "ds_type": "json", "type": "completion", "field": "body"}],
                    [{"path": "org/data", "type": "alpaca"}, {"path": "rows.jsonl", "type": "chat_template"}],
                    [
                        {
                            "path": "json",
                            "data_files": ["rows.jsonl"],
                            "type": "chat_template",
                            "field_messages": "conversations",
                            "message_property_mappings": {"role": "from", "content": "value"},
                        }
                    ],
                ]
            ),
        },
        {
            "adapter": _null(st.sampled_from(["lora", "qlora"])),
            "load_in_4bit": _flags,
            "lora_dropout": _null(_share),
            "lora_target_modules": _modules,
            "peft_use_dora": _flags,
            "peft_use_rslora": _flags,
            "val_set_size": _share,
            "sequence_len": st.integers(2, 9999),
            "sample_packing": _null(_flags),
            "optimizer": _adamw,
            "adam_beta1": _null(_share),
            "adam_beta2": _null(_share),
            "weight_decay": _share,
            "adam_epsilon": _null(st.floats(1e-12, 1e-3)),
            "max_grad_norm": _null(st.floats(0, 10)),
            "lr_scheduler": _schedules,
            "lr_scheduler_kwargs": _kwargs,
            "cosine_constant_lr_ratio": st.just(0),
            "lora_fan_in_fan_out": _flags,
            "warmup_steps": _null(st.integers(0, 50)),
            "warmup_ratio": _null(_share),
            "micro_batch_size": _counts,
            "gradient_accumulation_steps": _counts,
            "max_steps": _null(st.integers(1, 10**6)),
            "num_epochs": st.floats(0.1, 20),
            "bf16": st.sampled_from(["auto", True, False]),
            "chat_template": _null(
                st.sampled_from(["tokenizer_default", "chatml", "tokenizer_default_fallback_llama3"])
            ),
            "evals_per_epoch": _counts,
            "eval_steps": st.integers(1, 500) | st.floats(0.01, 0.5),
            "seed": _null(st.integers(0, 99)),
            "gradient_checkpointing": _null(st.sampled_from([True, False, "offload"])),
            "wandb_project": _null(_texts),
            "output_dir": _texts,
            "flash_attention": _flags,
            "tf32": _flags,
            "train_on_inputs": _flags,
            "eot_tokens": st.just(["<|im_end|>"]),
            "special_tokens": st.fixed_dictionaries({"pad_token": _texts}),
        },
    ),
}

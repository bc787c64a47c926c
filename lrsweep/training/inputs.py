"""A trial's tokenizer and data, loaded once for all trials that share them."""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from lrsweep.config.trial_schema import DataConfig, ModelConfig
from lrsweep.training.data.loading import FinetuneData, load
from lrsweep.training.model import load_tokenizer


@lru_cache(maxsize=4)
def _inputs(model: str, data: str) -> tuple[PreTrainedTokenizerBase, FinetuneData]:
    tokenizer = load_tokenizer(ModelConfig.model_validate_json(model))
    return tokenizer, load(DataConfig.model_validate_json(data), tokenizer)


def forget_inputs() -> None:
    """Makes the next call load again: a file may have changed since an earlier sweep of this process."""
    _inputs.cache_clear()


def inputs(model: ModelConfig, data: DataConfig) -> tuple[PreTrainedTokenizerBase, FinetuneData]:
    """The tokenizer of `model`, and `data` tokenised with it. Raises InputError for a missing model, file or row."""
    # Configs hold mappings, which cannot be hashed; their JSON can.
    return _inputs(model.model_dump_json(), data.model_dump_json())

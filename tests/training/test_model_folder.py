"""What is told of a model's folder."""

import json
from pathlib import Path

from lrsweep.config.trial_schema import ModelConfig
from lrsweep.training.model_folder import own_code


def test_code_of_the_models_own_that_is_not_run_is_told(tmp_path: Path) -> None:
    tree = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    told = own_code(ModelConfig(path=str(tmp_path)))
    assert told is not None
    assert "(auto_map in config.json) is not run, but transformers' llama" in told
    assert own_code(ModelConfig(path=str(tmp_path), trust_remote_code=True, revision="a" * 40)) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert own_code(ModelConfig(path=str(tmp_path))) is None
    assert own_code(ModelConfig(path="embedded")) is None

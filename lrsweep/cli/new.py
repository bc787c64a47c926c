"""`lrsweep new NAME`: writes a commented sweep file to start from."""

import re
from collections.abc import Sequence
from pathlib import Path

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import InputError
from lrsweep.files.atomic import write_text
from lrsweep.files.paths import NAME

_TEXT = """\
# @package _global_
# What this sweep is for.
#
#   lrsweep +sweep={name}
#
# Every key of `lrsweep --help` can be set here, and again on the command line, which wins.
defaults:
  # One option of a group each. Remove the lines that you do not need.
  - override /model: embedded # yours: local, with model.path below
  - override /data: embedded # yours: local, with data.path and data.format below
  - override /finetune: lora # lora | qlora | full | freeze
  - override /training: short # short | medium
  - override /search: auto # auto | grid | refine | tpe | random | qmc | gp | cmaes

# model:
#   path: /models/Qwen2.5-0.5B # a folder with safetensors weights, or a hub id
# data:
#   path: train.jsonl # JSON, JSONL, CSV or Parquet, a folder of them, or a hub id
#   format: alpaca # alpaca | sharegpt | messages | prompt_completion | text
# training:
#   batch_size: 8 # the batch size of your real run: the best rate depends on it
#   max_steps: 60 # the length of a trial
#   horizon: 3000 # the length of your real run, whose schedule the trials then follow

# The axes: any key of the config, with a list of values or a range: {{low: 1e-5, high: 1e-3, log: true, num: 5}}
space:
  optimizer:
    lr: [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    # weight_decay: [0.0, 0.01, 0.1]
    # betas: [[0.9, 0.999], [0.9, 0.95]]
"""


_VALUES = ("null", "true", "false", "nan", "inf")


def run(argv: Sequence[str]) -> int:
    """Writes the file. Raises LrsweepError."""
    parser = ArgumentParser("new", "write a commented sweep file to start from, sweeps/NAME.yaml")
    parser.add_argument("name", metavar="NAME", help="the sweep's name")
    name = parser.parse_args(argv).name
    # Hydra would read 123, null or inf as a value.
    if not re.fullmatch(NAME, name) or not name[0].isalpha() or name.lower() in _VALUES:
        raise InputError(f"new {name}: a name has letters, digits, '.', '_' and '-' only, and starts with a letter")
    from lrsweep.config.hydra_compose import sweep_names

    path = Path("sweeps") / f"{name}.yaml"
    if path.exists():
        raise InputError(f"{path}: exists already; choose another name, or edit it")
    if name in sweep_names():
        raise InputError(f"new {name}: lrsweep has a sweep of that name; choose another name")
    write_text(path, _TEXT.format(name=name))
    print(f"wrote {path}; edit it, and run it with: lrsweep +sweep={name}")
    return 0

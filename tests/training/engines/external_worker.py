"""A worker's process, to be killed: it trains one trial by a command. `python -m ... COMMAND FOLDER`."""

import sys
from pathlib import Path

from lrsweep.training.engines.external import ExternalEngine
from tests.recorder import tiny, train

if __name__ == "__main__":
    train(ExternalEngine(sys.argv[1], lambda trial, output: "", 1, []), Path(sys.argv[2]), tiny())

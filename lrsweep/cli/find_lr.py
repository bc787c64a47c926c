"""`lrsweep find-lr [key=value ...]`: runs a learning-rate range test and proposes a range to sweep."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lrsweep.analysis import range_test
from lrsweep.analysis.range_test import Floats, RangeTest
from lrsweep.cli.arguments import ArgumentParser, file_path
from lrsweep.config.schema import SweepConfig
from lrsweep.files.redaction import mask

if TYPE_CHECKING:
    from lrsweep.training.lr_ramp import RampPoint

# Wraps the points of a range test to show progress, and yields them unchanged.
Progress = Callable[[Iterable["RampPoint"]], Iterable["RampPoint"]]


def run(argv: Sequence[str]) -> int:
    """Runs the range test and prints its result. Raises LrsweepError."""
    parser = ArgumentParser(
        "find-lr", "run a learning-rate range test on the composed config, to find a range to sweep"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the config, as for a sweep; `space` is ignored"
    )
    parser.add_argument("--from", dest="low", type=float, default=1e-7, metavar="LR", help="first rate (default: 1e-7)")
    parser.add_argument("--to", dest="high", type=float, default=10.0, metavar="LR", help="last rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps, one at each rate (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--plot", type=file_path, metavar="FILE", help="write a plot: .png, .svg or .pdf")
    arguments = parser.parse_intermixed_args(argv)
    from lrsweep.config.hydra_compose import sweep_config
    from lrsweep.libraries import quiet
    from lrsweep.report import range_test as shown
    from lrsweep.report.terminal import Terminal

    config = sweep_config(arguments.overrides)
    rates = range_test.rates(arguments.low, arguments.high, arguments.steps)
    if arguments.plot is not None:
        shown.check_plot(arguments.plot)
    quiet()
    logging.captureWarnings(True)
    from rich.progress import track

    console = Terminal(stderr=True)

    def progress(points: "Iterable[RampPoint]") -> "Iterable[RampPoint]":
        quietly = not console.is_terminal
        return track(points, "range test", len(rates), console=console, transient=True, disable=quietly)

    test = find(config, rates, progress)
    command = mask(shown.command(config, test, arguments.overrides)) if test.lrs else ""
    print(json.dumps(shown.as_json(test, command), indent=1) if arguments.json else shown.as_text(test, command))
    if arguments.plot is not None:
        shown.plot_range_test(test, arguments.plot)
    if not test.lrs:
        raise range_test.NoRangeError(f"no range found: {test.reason}")
    return 0


def find(config: SweepConfig, rates: Sequence[float] | Floats, progress: Progress = iter) -> RangeTest:
    """Runs the range test on the config's model and data. Writes nothing.

    Args:
        config: The composed config.
        rates: The learning rates, one for each step, rising.
        progress: Wraps the points, to show progress.

    Returns:
        The losses over the rates, and the range to sweep.

    Raises:
        InputError: The config, the model or the data are invalid.
    """
    from lrsweep.training.data.loading import check_paths
    from lrsweep.training.model_folder import check_path

    check_path(config.model)
    check_paths(config.data)
    # torch and transformers take seconds to import, so errors that do not need them come first.
    import numpy as np

    from lrsweep.training.lr_ramp import ramp
    from lrsweep.training.optimizer import check_buildable

    check_buildable(config.optimizer, config.scheduler, config.training.schedule_steps)
    lrs: list[float] = []
    changes: list[float] = []
    bases: list[float] = []
    for point in progress(ramp(config, [float(lr) for lr in rates])):
        lrs.append(point.lr)
        changes.append(point.loss - point.base)
        bases.append(point.base)
        if range_test.blown_up(np.array(changes) + np.mean(bases), float(np.mean(bases))):
            break
    base = float(np.mean(bases))
    # The loss of each point as if its rows were as hard as the average row.
    return range_test.analyse(np.array(lrs), np.array(changes) + base, base)

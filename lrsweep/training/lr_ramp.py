"""The training part of a learning-rate range test: one trial whose lr rises at every step."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrsweep.config.schema import SweepConfig
from lrsweep.training.data.row_sampler import row_batches
from lrsweep.training.plain_loop import PlainLoop, check_loss, in_memory


@dataclass(frozen=True)
class RampPoint:
    """The loss on the rows that follow a step at `lr`, and `base`, the untouched model's loss on the same rows; nats."""

    lr: float
    loss: float
    base: float


def ramp(config: SweepConfig, rates: Sequence[float]) -> Iterator[RampPoint]:
    """Trains one step at each of `rates`, in order, with all else as the config says but for its schedule.

    Rows differ in how hard they are by far more than one step changes; so what the untouched model makes of each batch is
    measured first. A loss belongs to the last step before it, as only later rows can show what a step did. Ends where the
    caller stops asking. Raises InputError.
    """
    training = config.training
    with in_memory(config, training.batch_size):
        loop = PlainLoop(config)
        order = row_batches(len(loop.rows), training.batch_size, training.gradient_accumulation_steps, training.seed)
        steps = list(itertools.islice(order, len(rates) + 1))
        base = []
        for batches in steps:
            base.append(loop.measure(batches))
            check_loss(base[-1], config)
        loop.gradients(steps[0])
        for i, lr in enumerate(rates, start=1):
            loop.step(lr)
            yield RampPoint(lr, loop.gradients(steps[i]), base[i])

"""The training part of a learning-rate range test: one trial whose lr rises at every step."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrsweep.config.schema import SweepConfig
from lrsweep.training.data.row_sampler import row_batches
from lrsweep.training.plain_loop import PlainLoop, check_loss, in_memory


@dataclass(frozen=True)
class RampPoint:
    """One step of the ramp.

    Attributes:
        lr: The step's learning rate.
        loss: The model's loss after the step, on the rows of the next step, in nats.
        base: The untrained model's loss on the same rows, in nats.
    """

    lr: float
    loss: float
    base: float


def ramp(config: SweepConfig, rates: Sequence[float]) -> Iterator[RampPoint]:
    """Trains one step at each learning rate; everything but the schedule is as in the config.

    Batches differ in difficulty by far more than one step changes the loss, so the untrained model's loss on each batch
    is measured first. A loss belongs to the last step before it, because only later rows show the effect of a step.
    This is the learning-rate range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), with
    the untrained model's losses added.

    Args:
        config: The trial's config.
        rates: The learning rates, in the order of the steps.

    Yields:
        One point for each step. The caller may stop early.

    Raises:
        InputError: The model or data cannot be loaded, the untrained model's loss is not finite, or memory runs out.
    """
    training = config.training
    with in_memory(config, training.batch_size):
        loop = PlainLoop(config)
        endless = row_batches(len(loop.rows), training.batch_size, training.gradient_accumulation_steps, training.seed)
        steps = list(itertools.islice(endless, len(rates) + 1))
        base = []
        for batches in steps:
            base.append(loop.measure(batches))
            check_loss(base[-1], config)
        loop.gradients(steps[0])
        for i, lr in enumerate(rates, start=1):
            loop.step(lr)
            yield RampPoint(lr, loop.gradients(steps[i]), base[i])

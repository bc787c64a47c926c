"""What every export says of itself."""

from lrsweep.report.summary import Summary
from lrsweep.report.words import loss, shown


def header(summary: Summary) -> str:
    """Comment lines: the sweep, the result, and the batch size that the learning rate belongs to."""
    best = summary.verdict.best
    assert best is not None
    training = best.config.training
    rows = training.batch_size * training.gradient_accumulation_steps
    tuned = ", ".join(f"{key}={shown(value)}" for key, value in best.values.items())
    return (
        f"# The best of the lrsweep sweep {summary.config.name}: {tuned}\n"
        f"# Eval loss {loss(best.eval_loss)} after {best.step} steps, trial {best.number} of {len(summary.results)}.\n"
        f"# The learning rate belongs to an effective batch of {rows} rows.\n"
    )

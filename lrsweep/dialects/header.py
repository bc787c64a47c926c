"""The comment lines at the top of every export."""

from lrsweep.formatting import format_loss, format_value
from lrsweep.report.summary import Summary


def header(summary: Summary) -> str:
    """Returns comment lines on a sweep with a best trial.

    They name the sweep and its result, the learning rates within noise of the best, and the batch size they hold for.
    """
    best, candidate = summary.verdict.best, summary.verdict.recommended
    assert best is not None
    assert candidate is not None
    training = best.config.training
    rows = training.batch_size * training.gradient_accumulation_steps
    tuned = ", ".join(f"{key}={format_value(value)}" for key, value in best.trained.items())
    trial = f"trial {best.number} of {len(summary.results)}"
    result = f"Eval loss {format_loss(candidate.mean)} after {best.step} steps, {trial}"
    if len(candidate.losses) > 1:
        result += f", the mean of {len(candidate.losses)} seeds"
    lines = [f"The best of the lrsweep sweep {summary.config.name}: {tuned}", f"{result}.", _ties(summary)]
    lines.append(f"The learning rate is for an effective batch of {rows} rows.")
    if training.horizon is None and summary.config.origin is None:
        lines.append(f"It was found in runs of {training.max_steps} steps: set your own run's length.")
    return comments(lines)


def comments(lines: list[str]) -> str:
    """Makes each line a YAML comment of one line; empty lines are left out."""
    return "".join(f"# {' '.join(line.split())}\n" for line in lines if line)


def _ties(summary: Summary) -> str:
    """The learning rates within noise of the best one."""
    span = summary.verdict.safe_range
    if span is None:
        return ""
    low, high = span
    if low == high:
        return f"No other learning rate tried is within noise of {format_value(low)}."
    return f"Learning rates from {format_value(low)} to {format_value(high)} are within noise of it."

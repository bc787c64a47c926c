"""The comment lines at the top of every export."""

from lrsweep.config.objective import EVAL_LOSS
from lrsweep.files.yaml_writer import comments
from lrsweep.formatting import format_value
from lrsweep.report.certainty import edge_warnings, inconclusive
from lrsweep.report.summary import Summary


def header(summary: Summary) -> str:
    """Returns comment lines on a sweep with a best trial.

    They name the sweep and its result, how certain it is, and the batch size that it holds for.
    """
    best, candidate = summary.verdict.best, summary.verdict.recommended
    assert best is not None
    assert candidate is not None
    training = best.config.training
    rows = training.batch_size * training.gradient_accumulation_steps
    tuned = ", ".join(f"{key}={format_value(value)}" for key, value in best.trained.items())
    trial = f"trial {best.number} of {len(summary.results)}"
    objective = summary.config.search.objective
    name = "Eval loss" if objective.metric == EVAL_LOSS else f"Metric {objective.name}:"
    result = f"{name} {objective.text(candidate.mean)} after {best.step} steps, {trial}"
    if len(candidate.losses) > 1:
        result += f", the mean of {len(candidate.losses)} seeds"
    lines = [f"The best of the lrsweep sweep {summary.config.name}: {tuned}", f"{result}.", *_certainty(summary)]
    lines.append(f"The learning rate is for an effective batch of {rows} rows.")
    if summary.longer_run is not None:
        longer = summary.longer_run
        low, high = format_value(longer.low), format_value(longer.high)
        lines.append(f"A run of {longer.steps} steps wants about {format_value(longer.lr)}, from {low} to {high}.")
    elif training.horizon is None and summary.config.origin is None:
        lines.append(f"It was found in runs of {training.max_steps} steps: set your own run's length.")
    return comments(lines)


def _certainty(summary: Summary) -> list[str]:
    """The safe range, or the lack of one, and what to know before the rate is used."""
    verdict = summary.verdict
    lines = edge_warnings(summary)
    if verdict.safe_range is not None:
        safe = verdict.safe_range
        low, high = format_value(safe.low), format_value(safe.high)
        lines.append(
            f"Learning rates from {low} to {high} are within {safe.tolerance:.0%} of the improvement in loss of it."
        )
    if verdict.inconclusive:
        lines.append(f"Inconclusive: {inconclusive(summary)}.")
    elif verdict.noise is None and verdict.rivals:
        lines.append("It was trained with one seed only, so noise was not measured.")
    return lines

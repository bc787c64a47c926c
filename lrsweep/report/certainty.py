"""How certain a sweep's result is, in sentences: edges, differences and noise, the safe range, the eval set."""

import math

from lrsweep.analysis.edges import Edge
from lrsweep.analysis.ranking import Candidate, Result
from lrsweep.analysis.row_noise import FEW_ROWS, RowNoise
from lrsweep.analysis.verdict import UNLIKELY, Rival, Verdict
from lrsweep.config.search_space import LR, reach
from lrsweep.formatting import format_value
from lrsweep.report.summary import Summary

# With fewer evaluations than these, a curve shows little.
_FEW_EVALS = 3


def chosen_values(result: Result) -> dict[str, object]:
    """A trial's axis values, and its other keys that differ from the sweep's, except the seed."""
    return {**result.trained, **own_keys(result)}


def own_keys(result: Result) -> dict[str, object]:
    """A trial's keys that differ from the sweep's, except its axes and the seed."""
    return {key: value for key, value in result.overrides.items() if key != "training.seed" and value is not None}


def edge_warnings(summary: Summary) -> list[str]:
    """For each axis whose best value is the lowest or highest tried: a warning, and what to do."""
    return [_edge(summary, edge) for edge in summary.verdict.edges]


def _edge(summary: Summary, edge: Edge) -> str:
    verdict = summary.verdict
    chosen = f"{edge.key}={format_value(edge.value)}"
    if verdict.recommended is not verdict.candidates[0]:
        chosen = f"the {summary.config.search.objective.best} is at {chosen}, which"
    warning = f"Warning: {chosen} is the {edge.side} value tried; the true best may lie beyond it."
    ends = reach(summary.config, edge.key)
    end = ends and (ends[0] if edge.side == "lowest" else ends[1])
    if end is not None and (end < edge.value if edge.side == "lowest" else end > edge.value):
        return f"{warning} The space extends to {format_value(end)}: raise search.n_trials."
    extends = edge.key == LR and summary.config.search.method == "grid" and not summary.config.search.extend
    return f"{warning} Widen space.{edge.key}{' or set search.extend=true' if extends else ''}."


def certainty(summary: Summary) -> list[str]:
    """How certain the result is: the next best trial, the noise, the safe range, and what limits the answer."""
    verdict = summary.verdict
    lines = [*_safety(summary), *_rivals(summary), *_safe_range(summary), *_better_rate(summary)]
    lines += _diverged_seeds(summary)
    if verdict.inconclusive:
        lines.append(f"Inconclusive: {inconclusive(summary)}.")
    return [*lines, *_eval_set(summary)]


def inconclusive(summary: Summary) -> str:
    """Why the sweep gives no clear answer."""
    return summary.verdict.inconclusive.replace("lowest loss", summary.config.search.objective.best)


def _safety(summary: Summary) -> list[str]:
    verdict = summary.verdict
    best, lowest, objective = verdict.recommended, verdict.candidates[0], summary.config.search.objective
    assert best is not None
    if best is lowest:
        return []
    return [
        f"Trial {lowest.result.number} has the {objective.best}, {objective.text(lowest.mean)}, "
        f"{_amount(summary, verdict.given_up)} {_side(summary, -1)}, but is at the end of the rates tried or beside "
        "one that diverged or is far worse."
    ]


def _side(summary: Summary, difference: float) -> str:
    """Where a trial's metric is, whose score differs by so much."""
    return "higher" if (difference >= 0) != summary.config.search.objective.maximize else "lower"


def _rivals(summary: Summary) -> list[str]:
    verdict = summary.verdict
    if not verdict.rivals:
        return []
    first = min(verdict.rivals, key=lambda rival: rival.difference)
    if verdict.noise is None:
        return [
            f"Next best: {_difference(summary, first)}. Noise was not measured, so this may be chance{_how(summary)}."
        ]
    noise = f"noise ±{verdict.noise.deviation:.2g}, measured with {verdict.noise.seeds} seeds"
    ties = [rival for rival in verdict.rivals if rival.tied]
    if ties:
        of = (
            "" if verdict.recommended is verdict.candidates[0] else f" with trial {verdict.candidates[0].result.number}"
        )
        listed = ", ".join(_tied(summary, rival) for rival in sorted(ties, key=lambda rival: rival.difference))
        return [f"Statistically tied{of}: {listed} ({noise})."]
    return [f"Next best: {_difference(summary, first)}, which is more than chance ({noise})."]


def _how(summary: Summary) -> str:
    """What it would take to measure noise."""
    if "training.seed" in summary.axes:
        return ": with training.seed as an axis, trials are not repeated with other seeds"
    if summary.config.search.replicates == 1:
        return ": search.replicates=auto trains the best three trials with 2 to 4 seeds"
    return ": no trial has completed with a second seed"


def _tied(summary: Summary, rival: Rival) -> str:
    assert rival.margin is not None
    side = _side(summary, rival.difference)
    return (
        f"trial {rival.candidate.result.number}, {_amount(summary, abs(rival.difference))} {side}, "
        f"±{rival.margin:.2g} with 95 %"
    )


def _difference(summary: Summary, rival: Rival) -> str:
    own = chosen_values(summary.verdict.candidates[0].result)
    values = {key: value for key, value in chosen_values(rival.candidate.result).items() if value != own.get(key)}
    named = ", ".join(f"{key}={format_value(value)}" for key, value in values.items()) or "the same values"
    side = _side(summary, rival.difference)
    return f"{named}, {_amount(summary, abs(rival.difference))} {side}"


def _amount(summary: Summary, difference: float) -> str:
    """A difference of losses in nats per token, and as a share of the improvement."""
    share = summary.verdict.share(difference)
    return f"{difference:.4f}" + ("" if share is None else f" ({share:.1%} of the improvement)")


def _safe_range(summary: Summary) -> list[str]:
    safe = summary.verdict.safe_range
    if safe is None:
        return []
    return [
        f"Safe learning rates: {format_value(safe.low)} to {format_value(safe.high)}, within {safe.tolerance:.0%} of "
        "the improvement by the fitted curve."
    ]


def _better_rate(summary: Summary) -> list[str]:
    better = summary.verdict.better_rate
    if better is None:
        return []
    amount = f"{100 * summary.config.search.tolerance:g} % of the improvement"
    if better.chance < UNLIKELY:
        chance = "under 1 %" if better.chance < 0.01 else f"{better.chance:.0%}"
        return [f"The chance that another rate is better by more than {amount} is {chance}."]
    return [
        f"The chance that another rate is better by more than {amount} is {better.chance:.0%}; the likeliest is "
        f"{format_value(float(f'{better.lr:.2g}'))}."
    ]


def _diverged_seeds(summary: Summary) -> list[str]:
    return [_diverged(summary, candidate) for candidate in summary.verdict.candidates if candidate.diverged]


def _diverged(summary: Summary, candidate: Candidate) -> str:
    rate = f" (learning rate {format_value(candidate.result.lr)})" if LR in summary.axes else ""
    seeds = len(candidate.losses) + candidate.diverged
    return (
        f"Warning: trial {candidate.result.number}{rate} diverged with {candidate.diverged} of its {seeds} "
        "seeds, so it ranks after all trials that did not diverge."
    )


def _eval_set(summary: Summary) -> list[str]:
    """What the eval set and the number of evaluations do to the certainty."""
    verdict, best = summary.verdict, summary.verdict.best
    assert best is not None
    lines = []
    rows = summary.about.dataset.eval_rows
    if 0 < rows < FEW_ROWS and verdict.rivals:  # how many the user's own command has is not known
        lines.append(
            f"Warning: only {rows} eval row{'s' * (rows != 1)}: other rows may give another order; use {FEW_ROWS} or "
            "more (data.eval_fraction, data.max_eval_rows)."
        )
    found = verdict.row_noise
    if found is not None:
        difference = abs(verdict.rivals[0].difference)
        if 2 * found.deviation >= difference or rows < FEW_ROWS:
            lines.append(
                f"The difference to trial {verdict.rivals[0].candidate.result.number} is {difference:.4f} on these "
                f"{found.rows} eval rows, ±{2 * found.deviation:.2g} on others like them.{_dominates(verdict, found)}"
            )
    evals = -(-best.config.training.max_steps // best.config.training.eval_every)
    if evals < _FEW_EVALS:
        lines.append(
            f"Warning: each trial was evaluated {'once' if evals == 1 else 'twice'}, so its curve shows little: lower "
            "training.eval_every."
        )
    return lines


def _dominates(verdict: Verdict, rows: RowNoise) -> str:
    """Whether eval rows or seeds leave the difference to the next best trial more uncertain."""
    if verdict.noise is None:
        return ""
    seeds = min(len(verdict.candidates[0].losses), len(verdict.rivals[0].candidate.losses))
    if rows.deviation > verdict.noise.deviation * math.sqrt(2 / seeds):
        return " The rows add more noise than the seeds, so more eval rows would tell more."
    return " The seeds add more noise than the rows, so more seeds would tell more."

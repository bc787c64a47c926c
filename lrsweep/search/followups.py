"""Trials that follow from results: rates beyond the tried ones, retries, more seeds of the best, a rate in between."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lrsweep.analysis.ranking import Candidate, Result
from lrsweep.analysis.verdict import UNLIKELY, Verdict
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import LR, Axis, Choices, grid, to_stored
from lrsweep.formatting import format_value
from lrsweep.search import refine
from lrsweep.search.growth import beyond
from lrsweep.search.records import TrialSpec
from lrsweep.search.replication import contenders

# The most new learning rates in one round.
_RATES_A_ROUND = 2
# How many of the best trials get replicates.
_FEW = 3
# How many rates `refine` tries after the first seeds, because they may be better, and how many seeds a trial gets then.
_MOST_LATER, _MOST_SEEDS = 4, 6
_BLOWN_UP = ("too_high", "diverged", "collapsed")


def followups(
    config: SweepConfig,
    axes: Sequence[Axis],
    results: Sequence[Result],
    verdict: Verdict,
    labels: Mapping[int, str],
    seconds: float = 0.0,
) -> tuple[list[TrialSpec], str]:
    """The trials that come next: an extension, else a rescue, else replicates, else a rate that may be better.

    Args:
        config: The sweep's config.
        axes: The study's axes, including the rates that extensions have added.
        results: The finished trials.
        verdict: Their ranking.
        labels: The diagnosis of each trial's curve, by number.
        seconds: Seconds spent training so far.

    Returns:
        The trials, and the reason for them; none if the sweep is complete.
    """
    return (
        _extension(config, axes, results, verdict)
        or _rescue(config, results, verdict, labels)
        or _replicates(config, axes, results, verdict)
        or _likelier(config, results, verdict, seconds)
        or ([], "")
    )


def _extension(
    config: SweepConfig, axes: Sequence[Axis], results: Sequence[Result], verdict: Verdict
) -> tuple[list[TrialSpec], str] | None:
    """The next learning rates of a grid, if the best one is its lowest or highest."""
    edge = next((edge for edge in verdict.edges if edge.key == LR), None)
    axis = next((axis for axis in axes if axis.key == LR), None)
    if edge is None or not config.search.extend or not isinstance(axis, Choices) or not axis.grows:
        return None
    added = {result.values[LR] for result in results if result.role == "extension"}
    tried = sorted(axis.values)
    if edge.value not in (tried[0], tried[-1]):
        return None  # the grid has more rates there, which search.n_trials has cut off
    new = beyond(tried, up=edge.side == "highest", count=_RATES_A_ROUND, added=len(added))
    if not new:
        return None
    others = [Choices(LR, tuple(new), grows=True) if other is axis else other for other in axes]
    specs = [TrialSpec(params, "extension") for params in grid(others)]
    rates = ", ".join(map(format_value, new))
    return specs, f"the best learning rate, {format_value(edge.value)}, is the {edge.side} tried: adding {rates}"


def _rescue(
    config: SweepConfig, results: Sequence[Result], verdict: Verdict, labels: Mapping[int, str]
) -> tuple[list[TrialSpec], str] | None:
    """The lowest learning rate that diverged, tried again with beta1 = 0.8, and with a longer warm-up."""
    best = verdict.best
    if not config.search.rescue or best is None or any(result.role == "rescue" for result in results):
        return None
    bad = [result for result in results if result.lr > best.lr and labels.get(result.number) in _BLOWN_UP]
    bad = [result for result in bad if result.role != "replicate"]
    if not bad:
        return None
    lowest = min(bad, key=lambda result: (result.lr, result.number))
    optimizer, scheduler, training = lowest.config.optimizer, lowest.config.scheduler, lowest.config.training
    ratio = scheduler.warmup(training.schedule_steps) / training.schedule_steps
    name = "constant_with_warmup" if scheduler.name == "constant" else scheduler.name
    remedies: list[dict[str, Any]] = [
        {"optimizer.betas": [0.8, optimizer.betas[1]]},
        {
            "scheduler.name": name,
            "scheduler.warmup_steps": None,
            "scheduler.warmup_ratio": round(min(max(2 * ratio, 0.2), 0.5), 3),
        },
    ]
    specs = [TrialSpec(_params(lowest), "rescue", {**lowest.overrides, **remedy}, lowest.number) for remedy in remedies]
    rate = format_value(lowest.lr)
    return specs, f"trial {lowest.number} (lr {rate}) diverged: retrying it with beta1 = 0.8, and with a longer warm-up"


def _replicates(
    config: SweepConfig, axes: Sequence[Axis], results: Sequence[Result], verdict: Verdict
) -> tuple[list[TrialSpec], str] | None:
    """The best few trials with more seeds: as many as `search.replicates` says, or as the decision needs."""
    if not verdict.candidates or any(axis.key == "training.seed" for axis in axes):
        return None
    wanted = config.search.replicates
    if wanted == "auto":
        chosen, seeds = contenders(verdict.candidates, verdict.rivals, verdict.noise, verdict.improvement)
    else:
        chosen, seeds = _best_few(verdict.candidates), wanted
    specs = []
    for candidate in chosen:
        result = candidate.result
        for i in range(1 + candidate.repeated, seeds):
            specs.append(_replicate(result, i))
    return (specs, _cost(config, _named(chosen), seeds, specs)) if specs else None


def seeds_beside(
    config: SweepConfig, axes: Sequence[Axis], results: Sequence[Result], new: Sequence[TrialSpec], number: int
) -> tuple[list[TrialSpec], str]:
    """The second seeds that can be trained beside a rate that `refine` tries before any noise is known.

    The best few will need them, and the new rate is expected to be one of these. A pack trains all of them in little
    more time than the new rate alone.

    Args:
        config: The sweep's config.
        axes: The study's axes.
        results: The finished trials.
        new: The trials that `refine` asks for.
        number: The number that the first of them will have.

    Returns:
        The replicates, and the reason for them. None if there are some already, or `search.replicates` is a number; if
        other axes come first; if a limit counts trials; or if trials are not packed, so that a wasted seed costs time.
    """
    search = config.search
    limited = search.n_trials is not None or search.budget is not None
    packs = config.engine.name in ("auto", "packed")
    if search.replicates != "auto" or limited or not packs or [axis.key for axis in axes] != [LR]:
        return [], ""
    if not new or any(spec.role != "fit" for spec in new) or any(result.role == "replicate" for result in results):
        return [], ""
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None and r.role != "rescue"]
    best = sorted(complete, key=lambda result: (result.eval_loss, result.number))[: _FEW - 1]
    seed = {"training.seed": (config.training.seed + 1) % 2**31}
    of_new = [replace(spec, role="replicate", overrides=seed, of=number + i) for i, spec in enumerate(new)]
    specs = [*of_new, *(_replicate(result, 1) for result in best)]
    return specs, _cost(config, f"it and {_numbered(best)}", 2, specs)


def _cost(config: SweepConfig, named: str, seeds: int, specs: Sequence[TrialSpec]) -> str:
    return (
        f"training {named} with {seeds} seeds each, to measure the noise: {len(specs)} more "
        f"trial{'s' * (len(specs) > 1)}, {len(specs) * config.training.max_steps} steps "
        "(search.replicates=1 turns this off)"
    )


def _likelier(
    config: SweepConfig, results: Sequence[Result], verdict: Verdict, seconds: float
) -> tuple[list[TrialSpec], str] | None:
    """The rate that may still be better than the best one, after `refine`; if that was tried, more seeds for both."""
    better, search = verdict.better_rate, config.search
    if search.method != "refine" or search.replicates != "auto" or better is None or better.chance < UNLIKELY:
        return None
    rate, best = float(f"{better.lr:.2g}"), verdict.candidates[0]
    near = [candidate for candidate in verdict.candidates if refine.same_rate(candidate.result.lr, rate)]
    if near:
        pair = {candidate.result.number: candidate for candidate in (best, near[0])}.values()
        enough = any(1 + candidate.repeated >= _MOST_SEEDS for candidate in pair)
        specs = [_replicate(candidate.result, 1 + candidate.repeated) for candidate in pair]
        doing = f"one more seed for {_named(list(pair))}"
    else:
        first = min((result.number for result in results if result.role == "replicate"), default=0)
        later = sum(result.role == "fit" and result.number > first for result in results)
        gone = any(refine.same_rate(r.lr, rate) for r in results if r.status in ("failed", "diverged"))
        enough = later >= _MOST_LATER or gone
        specs, doing = [TrialSpec({LR: rate}, "fit")], "trying it"
    if enough:
        return None
    why = (
        f"refine: {format_value(rate)} is better than {format_value(best.result.lr)} by more than "
        f"{100 * search.tolerance:g} % of the improvement with a chance of {better.chance:.0%}"
    )
    if used_up := refine.limit(config, results, refine.Plan(tuple(specs)), seconds):
        return [], f"{why}, but {used_up} is used up"
    return specs, f"{why}: {doing}"


def _best_few(candidates: Sequence[Candidate]) -> list[Candidate]:
    first, *others = candidates
    # Trials of an extension that beat the first after the best few had their seeds.
    later = [c for c in others[_FEW - 1 :] if c.result.role == "extension" and c.mean < first.mean]
    return [first, *others[: _FEW - 1], *later]


def _named(chosen: Sequence[Candidate]) -> str:
    return _numbered([candidate.result for candidate in chosen])


def _numbered(results: Sequence[Result]) -> str:
    numbers = [str(result.number) for result in results]
    return f"trials {', '.join(numbers[:-1])} and {numbers[-1]}" if len(numbers) > 1 else f"trial {numbers[0]}"


def _replicate(result: Result, number: int) -> TrialSpec:
    seed = {"training.seed": (result.config.training.seed + number) % 2**31}
    return TrialSpec(_params(result), "replicate", {**result.overrides, **seed}, result.number)


def _params(result: Result) -> dict[str, Any]:
    return {key: to_stored(value) for key, value in result.values.items()}

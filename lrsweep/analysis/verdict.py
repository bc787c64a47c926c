"""The verdict on a sweep: the recommended trial, what the seeds show about its rivals, the safe range, and the edges.

Everything that lrsweep says about a sweep's result, on the terminal, in the report, in exports and in MLflow, is
written from these facts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrsweep.analysis.edges import Edge, edges
from lrsweep.analysis.lr_curve import BetterRate, LrCurve, SafeRange, better_rate, fit, safe_range
from lrsweep.analysis.noise import Noise, fit_seeds
from lrsweep.analysis.ranking import Candidate, Result, budget, ranked
from lrsweep.analysis.row_noise import RowNoise, row_noise
from lrsweep.config.search_space import LR

# Two losses count as different if chance alone would separate any of equal trials in at most one sweep of twenty.
_CONFIDENCE = 0.95
# With search.replicates=auto that is asked up to three times, after about 3, 6 and 9 replicates, so each time has to be
# surer, and the first the least: the errors add up to about one in twenty (benchmarks/verdict.py).
_CONFIDENCES = (0.97, 0.993, 0.997)
# The replicates of the first look. After `refine` up to two more trials get their second seed in it.
_FIRST_LOOK, _FIRST_LOOK_REFINED = 3, 5
# The best trials were picked for their first seed. A trial that has that one only must differ from them by more.
_PICKED = 0.99
# A share of the improvement that nobody minds: the loss before training minus the best loss.
TOLERANCE = 0.01
# `refine` ends when the chance of a better rate is below this.
UNLIKELY = 0.05
# A rate is at risk if its neighbour loses this share of the improvement or more.
_FAR_WORSE = 0.5
# Rates closer than this factor are not neighbours but the same place.
_APART = 1.4
# The roles of trials that try no learning rate of their own.
_FOLLOWING = ("rescue", "replicate")
# What a stopped trial is behind the best at the same step, it is behind at the end by this factor, with this deviation
# as a share of it (benchmarks/refine.py).
_LATER, _LATER_ERROR = 0.9, 0.5
# Trials that differ by this many deviations are never exchanged for one another.
_SURE = 3.0


@dataclass(frozen=True)
class Rival:
    """A candidate compared with the one that has the lowest loss.

    Attributes:
        candidate: The candidate.
        difference: Its loss minus the lowest one, with the same seeds, in nats per token.
        margin: How far the two may differ by chance, with 95 %; None if noise was not measured.
    """

    candidate: Candidate
    difference: float
    margin: float | None

    @property
    def tied(self) -> bool:
        """Whether the seeds do not tell the two apart; False if noise was not measured."""
        return self.margin is not None and abs(self.difference) <= self.margin


@dataclass(frozen=True)
class Verdict:
    """The result of a sweep.

    Attributes:
        candidates: The complete trials of the longest budget, best first.
        rivals: All candidates but the first, compared with it, in the same order.
        recommended: The first, or a rival that is as good and farther from danger; None if no trial completed.
        noise: The noise from seed to seed; None if no trial was trained with several seeds.
        row_noise: How much the choice of eval rows moves the difference to the next best; None if it is not known.
        improvement: The loss before training minus the lowest loss; None if it is not known, or not above 0.
        lr_curve: The loss over the learning rate; None if it was not searched or too few rates were tried.
        safe_range: The learning rates that are about as good as the recommended one; None if it is not known.
        better_rate: The learning rate that is likeliest to beat the lowest loss by more than `search.tolerance`; None
            if noise was not measured, the lowest loss is at an end of the rates, or other keys were searched too.
        edges: The axes on which the lowest loss is at the end of what was tried.
        inconclusive: Why the sweep gives no clear answer; empty if it does.
    """

    candidates: tuple[Candidate, ...]
    rivals: tuple[Rival, ...]
    recommended: Candidate | None
    noise: Noise | None
    row_noise: RowNoise | None
    improvement: float | None
    lr_curve: LrCurve | None
    safe_range: SafeRange | None
    better_rate: BetterRate | None
    edges: tuple[Edge, ...]
    inconclusive: str

    @property
    def ranking(self) -> tuple[Result, ...]:
        """The ranked trials without their replicates, best first."""
        return tuple(candidate.result for candidate in self.candidates)

    @property
    def best(self) -> Result | None:
        """The recommended trial; None if no trial completed."""
        return None if self.recommended is None else self.recommended.result

    @property
    def ties(self) -> tuple[Candidate, ...]:
        """The candidate with the lowest loss and those that the seeds do not tell from it."""
        return (*self.candidates[:1], *(rival.candidate for rival in self.rivals if rival.tied))

    @property
    def given_up(self) -> float:
        """The recommended trial's loss minus the lowest one, in nats per token."""
        return next((rival.difference for rival in self.rivals if rival.candidate is self.recommended), 0.0)

    def share(self, difference: float) -> float | None:
        """A difference of losses as a share of the improvement; None if that is not known."""
        return None if self.improvement is None else difference / self.improvement


def judge(results: Sequence[Result], base_loss: float | None = None) -> Verdict:
    """Ranks a sweep's trials and recommends one.

    Args:
        results: The finished trials.
        base_loss: Eval loss before training, in nats per token; None if it is not known.
    """
    candidates = ranked(results)
    if not candidates:
        return Verdict((), (), None, None, None, None, None, None, None, (), "no trial completed")
    best = candidates[0]
    improvement = base_loss - best.mean if base_loss is not None and base_loss > best.mean else None
    rivals, noise = compared(candidates)
    danger = _Danger(candidates, results, improvement)
    recommended = _recommended(candidates, rivals, noise, improvement, danger)
    stopped = [
        r for r in results if r.status == "pruned" and r.role not in _FOLLOWING and budget(r) == budget(best.result)
    ]
    losses, errors = _over_lr(candidates, rivals, noise, stopped)
    curve = fit(losses, errors, base_loss)
    found = edges(best.result, results, TOLERANCE * (improvement or 0.0))
    inconclusive = _inconclusive(rivals, noise, found, stopped)
    safe = None
    beside = danger.beside_divergence
    if curve is not None and improvement is not None and recommended.result.lr not in beside and not inconclusive:
        safe = safe_range(curve, recommended.result.lr, improvement, beside)
    better = None
    if noise is not None and improvement is not None and list(best.result.values) == [LR] and not found:
        gain = best.result.config.search.tolerance * improvement
        better = better_rate(losses, errors, base_loss, best.result.lr, gain)
    return Verdict(
        candidates,
        rivals,
        recommended,
        noise,
        row_noise(best.result.rows, candidates[1].result.rows) if len(candidates) > 1 else None,
        improvement,
        curve,
        safe,
        better,
        found,
        inconclusive,
    )


def compared(candidates: Sequence[Candidate]) -> tuple[tuple[Rival, ...], Noise | None]:
    """Compares all candidates but the first with it; returns the noise too, None if no candidate has two seeds."""
    best, *others = candidates
    model = fit_seeds([candidate.by_seed for candidate in candidates])
    if model is None:
        return tuple(Rival(other, other.mean - best.mean, None) for other in others), None
    repeated = sum(len(candidate.losses) > 1 for candidate in candidates)
    confidence = _CONFIDENCE
    if best.result.config.search.replicates == "auto":
        replicates = sum(candidate.repeated for candidate in candidates)
        first = _FIRST_LOOK_REFINED if best.result.config.search.method == "refine" else _FIRST_LOOK
        confidence = _CONFIDENCES[0 if replicates <= first else 1 if replicates <= 6 else 2]
    rivals = []
    for i, other in enumerate(others, start=1):
        if len(other.losses) > 1:
            margin = model.margin(i, 0, repeated, confidence)
        else:
            margin = model.margin(i, 0, len(candidates), max(confidence, _PICKED))
        rivals.append(Rival(other, float(model.means[i] - model.means[0]), margin))
    return tuple(rivals), model.noise


class _Danger:
    """Which learning rates are at an end of what was tried, or beside one that diverged or lost far more.

    Attributes:
        beside_divergence: The rates whose neighbour diverged.
    """

    def __init__(self, candidates: Sequence[Candidate], results: Sequence[Result], improvement: float | None) -> None:
        best = candidates[0]
        longest = budget(best.result)
        # What each tried rate has lost at best, in units of the improvement; an unfinished trial may have lost all.
        self._lost: dict[float, float] = {}
        for result in results:
            if result.role in _FOLLOWING or budget(result) != longest or result.status == "failed":
                continue
            lost = math.inf
            if result.status != "diverged" and result.eval_loss is not None and math.isfinite(result.eval_loss):
                lost = (result.eval_loss - best.mean) / improvement if improvement else 0.0
            self._lost[result.lr] = min(lost, self._lost.get(result.lr, math.inf))
        for candidate in candidates:
            if candidate.diverged:
                self._lost[candidate.result.lr] = math.inf
        self._tried = sorted(self._lost)
        diverged = {lr for lr, lost in self._lost.items() if lost == math.inf}
        self.beside_divergence = frozenset(lr for lr in self._tried if diverged.intersection(self._neighbours(lr)))

    def _neighbours(self, lr: float) -> list[float]:
        below = [other for other in self._tried if other <= lr / _APART]
        above = [other for other in self._tried if other >= lr * _APART]
        return [*below[-1:], *above[:1]]

    def near(self, lr: float) -> bool:
        """Whether the rate is at an end, or has a neighbour that diverged or lost half of the improvement."""
        neighbours = self._neighbours(lr)
        return len(neighbours) < 2 or any(self._lost[other] >= _FAR_WORSE for other in neighbours)


def _recommended(
    candidates: Sequence[Candidate],
    rivals: Sequence[Rival],
    noise: Noise | None,
    improvement: float | None,
    danger: _Danger,
) -> Candidate:
    """The candidate with the lowest loss; if danger is near, the best rival without, at no noticeable cost."""
    best = candidates[0]
    if LR not in best.result.values or not danger.near(best.result.lr):
        return best
    most = TOLERANCE * (improvement or 0.0)
    if noise is not None:
        most = min(most, _SURE * noise.deviation)
    safer = [
        rival.candidate
        for rival in rivals
        if rival.difference <= most
        and (rival.tied or noise is None)
        and rival.candidate.diverged <= best.diverged
        and not danger.near(rival.candidate.result.lr)
    ]
    return safer[0] if safer else best


def _over_lr(
    candidates: Sequence[Candidate], rivals: Sequence[Rival], noise: Noise | None, stopped: Sequence[Result]
) -> tuple[dict[float, float], dict[float, float]]:
    """The best loss that the other axes allow for each learning rate, and its standard error; empty without that axis.

    If nothing else is searched, a stopped trial counts too, by how far it was behind the best one when it stopped.
    `refine` tries the other axes at one rate only, so with it the best trial's values of them count alone.
    """
    best = candidates[0]
    if LR not in best.result.values:
        return {}, {}
    if best.result.config.search.method == "refine":
        others = {key: value for key, value in best.result.values.items() if key != LR}
        rivals = [r for r in rivals if {**r.candidate.result.values, **others} == r.candidate.result.values]
    losses = {best.result.lr: best.mean}
    errors: dict[float, float] = {}
    for candidate, difference in [(best, 0.0), *((rival.candidate, rival.difference) for rival in rivals)]:
        lr = candidate.result.lr
        if candidate.diverged <= best.diverged and best.mean + difference <= losses.get(lr, math.inf):
            losses[lr] = best.mean + difference
            errors[lr] = noise.bound / math.sqrt(len(candidate.losses)) if noise else 0.0
    at_step = dict(best.result.evals) if list(best.result.values) == [LR] else {}
    for result in stopped:
        step, loss = result.evals[-1] if result.evals else (0, math.nan)
        if step in at_step and result.lr not in losses and math.isfinite(loss):
            behind = loss - at_step[step]
            losses[result.lr] = best.mean + _LATER * behind
            errors[result.lr] = _LATER_ERROR * abs(behind)
    return losses, errors


def _inconclusive(
    rivals: Sequence[Rival], noise: Noise | None, found: Sequence[Edge], stopped: Sequence[Result]
) -> str:
    edge = next((edge for edge in found if edge.key == LR), None)
    if edge is not None:
        return f"the lowest loss is at the {edge.side} learning rate tried, so the best rate may lie beyond"
    # Rates that were stopped for being behind have been told apart.
    if noise is not None and len(rivals) >= 2 and all(rival.tied for rival in rivals) and not stopped:
        return f"all {len(rivals) + 1} complete trials are within noise of each other"
    return ""

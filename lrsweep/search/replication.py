"""Which trials are trained with more seeds: as many as the decision needs, and no more."""

import math
from collections.abc import Sequence

from lrsweep.analysis.noise import Noise
from lrsweep.analysis.ranking import Candidate
from lrsweep.analysis.verdict import TOLERANCE, Rival

# At most this many trials are repeated at a time, with at most this many seeds each, and this many replicates in all;
# more for each rate that `refine` has added, which would otherwise win or lose by one seed.
_CONTENDERS, _SEEDS, _REPLICATES, _FOR_A_FIT = 3, 4, 9, 3
# Trials of one rate whose losses differ by less than this share of the improvement are as good as the same.
_NO_DIFFERENCE = 0.1 * TOLERANCE
# Noise up to this share of the improvement is small.
_SMALL = 2 * TOLERANCE


def contenders(
    candidates: Sequence[Candidate], rivals: Sequence[Rival], noise: Noise | None, improvement: float | None
) -> tuple[list[Candidate], int]:
    """Chooses the trials to repeat next.

    First the best three get a second seed each, which measures the noise. If the best one is then told from all
    others, or they cost no more than the tolerance, nobody needs to know more. Otherwise those that it is not told from
    get one more seed, so that all that are compared have the same seeds.

    Of trials that have one rate and one loss, only the first counts: what differs between them makes no difference,
    with another seed neither, so they would show too little noise.

    Args:
        candidates: The complete trials, best first.
        rivals: All but the first, compared with it.
        noise: The noise; None if no trial was repeated.
        improvement: The loss before training minus the lowest loss; None if it is not known.

    Returns:
        The candidates, and how many seeds each should have in all; no candidates if nothing is left to decide.
    """
    if len(candidates) < 2:
        return [], 1
    different = _different(candidates, _NO_DIFFERENCE * (improvement or 0.0))
    most = max(1 + candidate.repeated for candidate in candidates)
    if most < 2:
        return different[:_CONTENDERS], 2
    nearest = sorted((r for r in rivals if r.candidate in different), key=lambda rival: rival.difference)
    open_rivals = [rival.candidate for rival in nearest if not _decided(rival, TOLERANCE * (improvement or 0.0))]
    # `refine` trains rates close to the best one, and more seeds would only tell apart what nobody minds. A second seed
    # is for those that have none yet, and may be far worse.
    refined = candidates[0].result.config.search.method == "refine"
    if refined and noise is not None and noise.deviation <= _SMALL * (improvement or 0.0):
        open_rivals = [candidate for candidate in open_rivals if not candidate.repeated]
    if noise is None or not open_rivals:
        return [], most
    chosen = [candidates[0], *open_rivals[: _CONTENDERS - 1]]
    fewest = min(1 + candidate.repeated for candidate in chosen)
    # A trial that had fewer seeds than the others first gets what they have.
    seeds = most if fewest < most else most + 1
    replicates = sum(max(c.repeated, seeds - 1) if c in chosen else c.repeated for c in candidates)
    most_replicates = _REPLICATES + _FOR_A_FIT * sum(c.result.role == "fit" for c in candidates)
    if seeds > _SEEDS or replicates > most_replicates:
        return [], most
    return [candidate for candidate in chosen if 1 + candidate.repeated < seeds], seeds


def _different(candidates: Sequence[Candidate], negligible: float) -> list[Candidate]:
    """The candidates without those that have the rate and the loss of a better one; all if only one would be left."""
    found: list[Candidate] = []
    for candidate in candidates:
        if not any(_same(candidate, other, negligible) for other in found):
            found.append(candidate)
    return found if len(found) > 1 else list(candidates)


def _same(one: Candidate, other: Candidate, negligible: float) -> bool:
    """Whether two trials of one rate have the same loss with their own seed, which is the same for all of a search."""
    losses = one.result.eval_loss, other.result.eval_loss
    assert losses[0] is not None
    assert losses[1] is not None
    return one.result.lr == other.result.lr and abs(losses[0] - losses[1]) < negligible


def _decided(rival: Rival, tolerance: float) -> bool:
    """Whether the rival is told from the best, or may not be better by more than the tolerance."""
    margin = math.inf if rival.margin is None else rival.margin
    return rival.difference > margin or margin - rival.difference <= tolerance

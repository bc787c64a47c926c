"""Sentences on the length of the run, which the best learning rate depends on."""

from lrsweep.analysis.horizon import LongerRun
from lrsweep.analysis.ranking import by_budget
from lrsweep.config.search_space import LR
from lrsweep.formatting import format_value
from lrsweep.report.summary import Summary


def lengths(summary: Summary) -> list[str]:
    """How the best learning rate moves with the length of the run, and the rate for a longer one."""
    if LR not in summary.axes:
        return []
    longer, budgets = summary.longer_run, by_budget(summary.results)
    if len(budgets) > 1:
        return [_moves(budgets), *_predicted(summary, max(steps for steps, _ in budgets))]
    if longer is not None:
        return [
            f"Short runs favor high rates, and the trials stopped after {longer.lengths[-1]} of {longer.steps} steps: "
            f"the whole run wants about {_rate(longer)}, by a rule of thumb (steps^-0.32). "
            f"+sweep=horizon training.horizon={longer.steps} measures it."
        ]
    if summary.config.training.horizon is None:
        return [
            "Short runs favor high rates: set training.horizon to the real run's steps, or compare with +sweep=horizon."
        ]
    return []


def _moves(budgets: dict[tuple[int, int], float]) -> str:
    rates = list(budgets.values())
    moves = "falls" if rates[-1] < rates[0] else "rises" if rates[-1] > rates[0] else "stays the same"
    listed = ", ".join(
        f"{format_value(lr)} for {steps} steps" + (f" of {schedule}" if schedule != steps else "")
        for (steps, schedule), lr in budgets.items()
    )
    return f"Of the rates tried, the best one {moves} as runs get longer: {listed}."


def _predicted(summary: Summary, longest: int) -> list[str]:
    longer, horizon = summary.longer_run, summary.config.training.horizon
    if longer is not None:
        asked = "" if horizon else " (set training.horizon to your run's steps)"
        if len(longer.lengths) == 1:
            only = f"only for {longer.lengths[0]} steps the best rate lies inside the range"
            why = f"by a rule of thumb (steps^-0.32), as {only}"
        else:
            why = f"as the best rate, fitted between those tried, moves as steps^{longer.exponent:.2f}"
        return [f"A run of {longer.steps} steps wants about {_rate(longer)}, {why}{asked}."]
    if not summary.config.lengths_searched or (horizon and horizon <= longest):
        return []
    return [
        "The rate for a longer run is not known, because for no length the best rate lies inside the range: widen "
        "space.optimizer.lr, with at least four rates."
    ]


def _rate(longer: LongerRun) -> str:
    low, high = format_value(longer.low), format_value(longer.high)
    return f"{format_value(longer.lr)}, and with 95 % one from {low} to {high}"

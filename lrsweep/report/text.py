"""The sweep's result in words, and on the terminal."""

from rich.console import Console
from rich.table import Table

from lrsweep.analysis import priors
from lrsweep.analysis.ranking import Candidate, Result, by_budget
from lrsweep.config.schema import key_facts
from lrsweep.config.search_space import LR, reach
from lrsweep.config.trial_schema import DataConfig
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_duration, format_loss, format_value
from lrsweep.report.summary import Summary
from lrsweep.tracking import DatasetInfo


def print_summary(console: Console, summary: Summary, folder: SweepFolder) -> None:
    """The table of trials, the best config, how sure it is, and where everything is."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("trial", justify="right")
    for key in summary.axes:
        table.add_column(key.rsplit(".", 1)[-1], justify="right")
    table.add_column("eval loss", justify="right")
    table.add_column("against best", justify="right")
    table.add_column("curve")
    table.add_column("state")
    best = summary.verdict.best
    for result in ordered(summary):
        table.add_row(
            str(result.number),
            *(format_value(value) for value in result.trained.values()),
            format_loss(result.eval_loss),
            _against(result, best),
            label(summary, result),
            state(summary, result),
            style=_style(result, best),
        )
    console.print()
    console.print(table)
    console.print()
    for line in sentences(summary):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()
    name, origin = summary.config.name, summary.config.origin
    home = origin.dialect if origin else summary.config.engine.dialect or "transformers"
    for what, text in (
        ("Report", str(folder.report)),
        ("Config", str(folder.best / "recommended.yaml")),
        ("Compare", summary.about.links.ui_command),
        ("", summary.about.links.compare_url),
        ("Take away", f"lrsweep export {name} --to {home}"),
    ):
        if text:
            console.print(f"{f'{what}:' if what else '':<10} {text}", highlight=False, soft_wrap=True)


def sentences(summary: Summary) -> list[str]:
    """The result in words: the best, how sure that is, and what to mind."""
    if summary.verdict.recommended is None:
        return ["No trial completed, so there is no best."]
    lines = [
        recommendation(summary),
        *_certainty(summary),
        *_edges(summary),
        *_lengths(summary),
        *_unlike(summary),
        *_rules(summary),
        *missing_rows(summary.about.dataset, summary.config.data),
        cost(summary),
    ]
    if summary.config.model.path == "embedded":
        lines.append(
            "This is the small embedded model: its best learning rate is no advice for yours (model=local model.path=...)."
        )
    return lines


def recommendation(summary: Summary) -> str:
    """The answer in one sentence."""
    best = summary.verdict.recommended
    assert best is not None
    chosen = ", ".join(f"{key}={format_value(value)}" for key, value in chosen_values(best.result).items())
    seeds = f" (mean of {len(best.losses)} seeds)" if len(best.losses) > 1 else ""
    line = f"Best: {chosen}, eval loss {format_loss(best.mean)}{seeds}, for batches of {_batch(summary)} rows"
    return line + ("." if summary.base_loss is None else f"; before training it was {format_loss(summary.base_loss)}.")


def chosen_values(result: Result) -> dict[str, object]:
    """A trial's axis values, and what else sets it apart."""
    return {**result.trained, **_own(result)}


def _own(result: Result) -> dict[str, object]:
    return {key: value for key, value in result.overrides.items() if key != "training.seed" and value is not None}


def _certainty(summary: Summary) -> list[str]:
    verdict = summary.verdict
    best, ties, noise = verdict.recommended, verdict.ties, verdict.noise
    assert best is not None
    lines = []
    if noise is not None:
        source = "between seeds" if noise.source == "replicates" else "in the last evaluations, a guess"
        known = f"(noise {noise.deviation:.2g} {source})"
        others = [tie for tie in ties if tie is not best]
        if others and verdict.safe_range and LR in summary.axes and verdict.safe_range[0] < verdict.safe_range[1]:
            low, high = verdict.safe_range
            lines.append(
                f"Not to be told from it {known}: {_counted(others)}, learning rates {format_value(low)} to {format_value(high)}"
                f"{_why_this(summary)}."
            )
        elif others:
            lines.append(f"Not to be told from it {known}: {_counted(others)}.")
        elif len(verdict.candidates) > 1:
            lines.append(f"Next: {_difference(verdict.candidates[1], best)}, which is more than chance {known}.")
    for candidate in verdict.candidates:
        if candidate.diverged:
            rate = f" (learning rate {format_value(candidate.result.lr)})" if LR in summary.axes else ""
            lines.append(
                f"Mind: trial {candidate.result.number}{rate} diverged with {candidate.diverged} of its "
                f"{len(candidate.losses) + candidate.diverged} seeds, and so comes after all that did not."
            )
    if verdict.inconclusive:
        lines.append(f"Inconclusive: {verdict.inconclusive}.")
    return lines


def _why_this(summary: Summary) -> str:
    best, lowest = summary.verdict.recommended, summary.verdict.candidates[0]
    assert best is not None
    if best is lowest:
        return ""
    return f"; trial {lowest.result.number} has the lowest loss, {format_loss(lowest.mean)}, but lies nearer to a slope"


def _counted(others: list[Candidate]) -> str:
    numbers = ", ".join(str(other.result.number) for other in others)
    return f"trial{'s' * (len(others) > 1)} {numbers}"


def _difference(other: Candidate, best: Candidate) -> str:
    mine = chosen_values(best.result)
    values = {key: value for key, value in chosen_values(other.result).items() if value != mine.get(key)}
    named = ", ".join(f"{key}={format_value(value)}" for key, value in values.items()) or "the same values"
    return f"{named}, {other.mean - best.mean:.4f} worse"


def _edges(summary: Summary) -> list[str]:
    lines = []
    added = [result.values[LR] for result in summary.results if result.role == "extension"]
    if added:
        rates = ", ".join(map(format_value, sorted(set(added))))
        lines.append(f"Added beyond the learning rates given, as the best was their last: {rates}.")
    for edge in summary.verdict.edges:
        ends = reach(summary.config, edge.key)
        end = ends and (ends[0] if edge.side == "lowest" else ends[1])
        if end is not None and (end < edge.value if edge.side == "lowest" else end > edge.value):
            lines.append(
                f"Mind: {edge.key}={format_value(edge.value)} is the {edge.side} that was tried; the true best may lie beyond it. "
                f"The space goes on to {format_value(end)}: raise search.n_trials."
            )
            continue
        grow = " or set search.extend=true" if edge.key == LR and summary.config.search.method == "grid" else ""
        lines.append(
            f"Mind: {edge.key}={format_value(edge.value)} is the {edge.side} that was tried; the true best may lie beyond it. "
            f"Widen space.{edge.key}{grow}."
        )
    return lines


def _lengths(summary: Summary) -> list[str]:
    """How the best rate moves with the length of the run."""
    budgets = by_budget(summary.results)
    if len(budgets) < 2 or LR not in summary.axes:
        if summary.config.training.horizon is None and LR in summary.axes:
            return [
                "Short runs favour high rates: give the real run's steps as training.horizon, or compare with +sweep=horizon."
            ]
        return []
    rates = list(budgets.values())
    moves = "falls" if rates[-1] < rates[0] else "rises" if rates[-1] > rates[0] else "stays"
    told = ", ".join(
        f"{format_value(lr)} for {steps} steps" + (f" of {schedule}" if schedule != steps else "")
        for (steps, schedule), lr in budgets.items()
    )
    return [f"The best learning rate {moves} as runs get longer: {told}."]


def _unlike(summary: Summary) -> list[str]:
    """Axes along which losses do not quite compare."""
    rows = [key for key in summary.axes if not key_facts(key).comparable]
    lines = [
        f"Mind: {key} changes what the eval loss is measured on; losses compare within one value of it only."
        for key in rows
    ]
    if {"training.batch_size", "training.gradient_accumulation_steps"} & set(summary.axes):
        lines.append("Mind: trials are equally many steps long, so that one with larger batches has seen more rows.")
    return lines


def _rules(summary: Summary) -> list[str]:
    """The prior's fate, and what another batch size would want."""
    best = summary.verdict.best
    assert best is not None
    lines = []
    batches = {"training.batch_size", "training.gradient_accumulation_steps"} & set(summary.axes)
    # It is for the base config's batch.
    if summary.about.prior is not None and LR in summary.axes and not batches:
        held = priors.held(summary.about.prior, best.lr, summary.verdict.safe_range)
        lines.append(f"The rule of thumb (size, LoRA, batch) {held.text}.")
    # SGD's goes with the batch itself.
    if LR in summary.axes and not batches and best.config.optimizer.name != "sgd":
        rows = 4 * _batch(summary)
        lines.append(
            f"With another batch the rate goes with its square root: for {rows} rows, start at {format_value(2 * best.lr)}."
        )
    return lines


def missing_rows(dataset: DatasetInfo, data: DataConfig) -> list[str]:
    """What `data.max_length` has left of the rows, where that is not all."""
    told = []
    if dataset.dropped:
        told.append(f"{dataset.dropped} were left out, as it cuts off all they have to learn")
    if dataset.cut:
        told.append(f"{dataset.cut} lost their end")
    # Packed, the training rows are blocks.
    rows = "rows" if data.packing else f"{dataset.train_rows + dataset.eval_rows + dataset.dropped} rows"
    return [f"Mind data.max_length={data.max_length}: of the {rows}, {' and '.join(told)}."] if told else []


def cost(summary: Summary) -> str:
    """What the sweep took."""
    steps = sum(result.step for result in summary.results)
    full = sum(result.config.training.max_steps for result in summary.results)
    saved = f", {1 - steps / full:.0%} fewer than without stopping early" if steps < full else ""
    return f"It took {len(summary.results)} trials, {steps} steps{saved}, {format_duration(summary.about.seconds)} of training."


def ordered(summary: Summary) -> list[Result]:
    """Trials in the order of their axis values, numbers before words."""
    return sorted(
        summary.results,
        key=lambda result: [
            (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in result.values.values()
        ],
    )


def _batch(summary: Summary) -> int:
    best = summary.verdict.best
    assert best is not None
    return best.config.training.batch_size * best.config.training.gradient_accumulation_steps


def _against(result: Result, best: Result | None) -> str:
    if best is None or best.eval_loss is None or result.eval_loss is None or result.status != "complete":
        return ""
    return "" if result is best else f"{result.eval_loss - best.eval_loss:+.4f}"


def label(summary: Summary, result: Result) -> str:
    """What the trial's curve shows, as words."""
    return summary.label(result.number).replace("_", " ")


def state(summary: Summary, result: Result) -> str:
    """How a trial ended, and why it was there."""
    best = summary.verdict.best
    role = "" if result.role in ("search", "prior") else f"{result.role}"
    if result.of is not None:
        what = {"replicate": f"seed {result.config.training.seed} of", "rescue": "rescue of"}[result.role]
        role = f"{what} trial {result.of}"
        if result.role == "rescue":
            role += " with " + ", ".join(f"{k.rsplit('.', 1)[-1]} {format_value(v)}" for k, v in _own(result).items())
    ended = result.status if not result.reason else f"{result.status}: {result.reason}"
    if best is not None and result.number == best.number:
        ended = "best"
    elif any(tie.result.number == result.number for tie in summary.verdict.ties):
        ended = "tied with it"
    return f"{ended} ({role})" if role else ended


def _style(result: Result, best: Result | None) -> str | None:
    if best is not None and result.number == best.number:
        return "bold green"
    return {"diverged": "red", "failed": "red", "pruned": "dim"}.get(result.status)

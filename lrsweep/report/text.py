"""The sweep's result as sentences, and as a table on the terminal."""

from rich.console import Console
from rich.table import Table

from lrsweep.analysis import priors
from lrsweep.analysis.ranking import Result
from lrsweep.config.schema import key_facts
from lrsweep.config.search_space import LR
from lrsweep.config.trial_schema import DataConfig
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_duration, format_value
from lrsweep.report.certainty import certainty, chosen_values, edge_warnings, own_keys
from lrsweep.report.lengths import lengths
from lrsweep.report.next_sweep import next_command
from lrsweep.report.summary import Summary
from lrsweep.tracking import DatasetInfo

# Characters that no table has in one line.
_WHOLE = 1000
_BATCH_KEYS = {"training.batch_size", "training.gradient_accumulation_steps"}


def print_summary(console: Console, summary: Summary, folder: SweepFolder) -> None:
    """Prints the table of trials, the result in sentences, and the paths and commands that lead on from there.

    Args:
        console: The terminal.
        summary: The sweep's summary.
        folder: The sweep's folder.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("trial", justify="right")
    for key in summary.axes:
        table.add_column(key.rsplit(".", 1)[-1], justify="right")
    table.add_column(summary.config.search.objective.name, justify="right")
    table.add_column("vs. best", justify="right")
    table.add_column("curve")
    table.add_column("status")
    best = summary.verdict.best
    for result in ordered(summary):
        table.add_row(
            str(result.number),
            *(format_value(value) for value in result.trained.values()),
            summary.config.search.objective.text(result.eval_loss),
            _difference_to_best(summary, result),
            label(summary, result),
            status(summary, result),
            style=_style(result, best),
        )
    console.print()
    # In a file or a pipe nothing limits the length of a line.
    console.print(table, width=None if console.is_terminal else _WHOLE)
    console.print()
    for line in sentences(summary):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()
    name, dialect = summary.config.name, trainer(summary)
    for what, text in (
        ("Report", str(folder.report)),
        ("Config", str(folder.best / "recommended.yaml")),
        ("Compare", summary.about.links.ui_command),
        ("", summary.about.links.compare_url),
        ("Next", next_command(summary)),
        ("Export", f"lrsweep export {name} --to {dialect}"),
    ):
        if text:
            console.print(f"{f'{what}:' if what else '':<8} {text}", highlight=False, soft_wrap=True)


def trainer(summary: Summary) -> str:
    """The dialect of the user's trainer, as far as the sweep shows it."""
    origin = summary.config.origin
    return origin.dialect if origin else summary.config.engine.dialect or "transformers"


def sentences(summary: Summary) -> list[str]:
    """The result in sentences: the best trial, how certain it is, warnings, and the cost."""
    if summary.verdict.recommended is None:
        return ["No trial completed, so there is no best."]
    lines = [
        " ".join([recommendation(summary), *edge_warnings(summary)]),
        *certainty(summary),
        *_added(summary),
        *lengths(summary),
        *_incomparable(summary),
        *_rules_of_thumb(summary),
        *missing_rows(summary.about.dataset, summary.config.data),
        cost(summary),
    ]
    if summary.config.model.path == "embedded" and summary.config.engine.name != "external":
        lines.append(
            "This is the small embedded model: its best learning rate says nothing about yours "
            "(model=local model.path=...)."
        )
    return lines


def recommendation(summary: Summary) -> str:
    """The best trial in one sentence."""
    best, objective = summary.verdict.recommended, summary.config.search.objective
    assert best is not None
    chosen = ", ".join(f"{key}={format_value(value)}" for key, value in chosen_values(best.result).items())
    seeds = f" (mean of {len(best.losses)} seeds)" if len(best.losses) > 1 else ""
    so_far = " so far" if summary.verdict.edges else ""
    line = (
        f"Best{so_far}: {chosen} with {objective.name} {objective.text(best.mean)}{seeds}, at a batch size of "
        f"{_batch(summary)}"
    )
    return line + (
        "." if summary.base_loss is None else f"; the loss before training is {objective.text(summary.base_loss)}."
    )


def _added(summary: Summary) -> list[str]:
    added = {result.values[LR] for result in summary.results if result.role == "extension"}
    if not added:
        return []
    rates = ", ".join(map(format_value, sorted(added)))
    return [f"Added learning rates, because the best one was at the end of the range: {rates}."]


def _incomparable(summary: Summary) -> list[str]:
    """Warnings about axes along which losses are not fully comparable."""
    lines = [
        f"Warning: {key} changes what the eval loss is measured on; only losses with the same value of it compare."
        for key in summary.axes
        if not key_facts(key).comparable
    ]
    if _BATCH_KEYS & set(summary.axes):
        lines.append(
            "Warning: all trials have the same number of steps, so those with larger batches have seen more rows."
        )
    return lines


def _rules_of_thumb(summary: Summary) -> list[str]:
    """Whether the prior was right, and the learning rate for another batch size."""
    best = summary.verdict.best
    assert best is not None
    # Both are about the base config's batch size.
    if LR not in summary.axes or _BATCH_KEYS & set(summary.axes):
        return []
    lines = []
    if summary.about.prior is not None:
        held = priors.check(summary.about.prior, summary.verdict)
        lines.append(f"The rule of thumb (size, LoRA, batch) {held.text}.")
    # SGD's rate scales with the batch size itself, not with its square root.
    if best.config.optimizer.name != "sgd":
        rows = 4 * _batch(summary)
        lines.append(
            "For another batch size, scale the rate by the square root: at a batch size of "
            f"{rows}, start from {format_value(2 * best.lr)}."
        )
    return lines


def missing_rows(dataset: DatasetInfo, data: DataConfig) -> list[str]:
    """A warning about the rows that truncation to `data.max_length` dropped or cut; empty if there are none."""
    parts = []
    if dataset.dropped:
        parts.append(f"{dataset.dropped} dropped: no label tokens left after truncation to max_length")
    if dataset.cut:
        parts.append(f"{dataset.cut} truncated")
    # With packing, the training rows are blocks, so the number of rows is unknown.
    rows = "rows" if data.packing else f"{dataset.train_rows + dataset.eval_rows + dataset.dropped} rows"
    return [f"Warning: data.max_length={data.max_length}: of the {rows}, {'; '.join(parts)}."] if parts else []


def cost(summary: Summary) -> str:
    """The cost of the sweep in one sentence: trials, steps and time."""
    steps = sum(result.step for result in summary.results)
    full = sum(result.config.training.max_steps for result in summary.results)
    saved = f" ({1 - steps / full:.0%} saved by stopping early)" if steps < full else ""
    took = format_duration(summary.about.seconds)
    return f"Cost: {len(summary.results)} trials, {steps} steps{saved}, {took} of training."


def ordered(summary: Summary) -> list[Result]:
    """Trials sorted by their axis values, numbers before strings."""
    return sorted(
        summary.results,
        key=lambda result: [
            (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in result.values.values()
        ],
    )


def _batch(summary: Summary) -> int:
    best = summary.verdict.best
    assert best is not None
    return best.config.training.rows_per_step


def _difference_to_best(summary: Summary, result: Result) -> str:
    best, objective = summary.verdict.best, summary.config.search.objective
    if best is None or best.eval_loss is None or result.eval_loss is None or result.status != "complete":
        return ""
    if result.role == "replicate":
        return ""  # another seed: it compares with the same seed of others only
    return "" if result is best else f"{objective.value(result.eval_loss) - objective.value(best.eval_loss):+.4f}"


def label(summary: Summary, result: Result) -> str:
    """The label of the trial's diagnosis, with spaces."""
    return summary.label(result.number).replace("_", " ")


def status(summary: Summary, result: Result) -> str:
    """How a trial ended, and its role if it is not a trial of the search."""
    best = summary.verdict.best
    ended = result.status if not result.reason else f"{result.status}: {result.reason}"
    if best is not None and result.number == best.number:
        ended = "best"
    elif any(r.tied and r.candidate.result.number == result.number for r in summary.verdict.rivals):
        ended = "tied"
    role = _role(result)
    return f"{ended} ({role})" if role else ended


def _role(result: Result) -> str:
    if result.role == "replicate":
        return f"seed {result.config.training.seed} of trial {result.of}"
    if result.role == "rescue":
        changed = ", ".join(f"{key.rsplit('.', 1)[-1]} {format_value(v)}" for key, v in own_keys(result).items())
        return f"rescue of trial {result.of} with {changed}"
    return result.role if result.role == "extension" else ""


def _style(result: Result, best: Result | None) -> str | None:
    if best is not None and result.number == best.number:
        return "bold green"
    return {"diverged": "red", "failed": "red", "pruned": "dim"}.get(result.status)

"""The sweep's result on the terminal."""

from rich.console import Console
from rich.table import Table

from lrsweep.outputs import SweepFolder
from lrsweep.report.summary import Summary
from lrsweep.report.words import loss, shown
from lrsweep.verdict import Result


def print_summary(console: Console, summary: Summary, folder: SweepFolder) -> None:
    """The table of trials, the best config, how it compares, and where everything is."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("trial", justify="right")
    for key in summary.axes:
        table.add_column(key.rsplit(".", 1)[-1], justify="right")
    table.add_column("eval loss", justify="right")
    table.add_column("against best", justify="right")
    table.add_column("state")
    best = summary.verdict.best
    for result in ordered(summary):
        table.add_row(
            str(result.number), *(shown(value) for value in result.values.values()), loss(result.eval_loss),
            _against(result, best), _state(result, best), style=_style(result, best),
        )  # fmt: skip
    console.print()
    console.print(table)
    console.print()
    for line in sentences(summary):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()
    name = summary.config.name
    for label, text in (
        ("Report", str(folder.report)),
        ("Config", str(folder.best / "recommended.yaml")),
        ("Compare", summary.links.ui_command),
        ("", summary.links.compare_url),
        ("Take away", f"lrsweep export {name} --to transformers"),
    ):
        if text:
            console.print(f"{f'{label}:' if label else '':<10} {text}", highlight=False, soft_wrap=True)


def sentences(summary: Summary) -> list[str]:
    """The result in words: the best, what it is better than, and what to mind."""
    best = summary.verdict.best
    if best is None:
        return ["No trial completed, so there is no best."]
    chosen = ", ".join(f"{key}={shown(value)}" for key, value in best.values.items())
    lines = [f"Best: {chosen}, eval loss {loss(best.eval_loss)}, for batches of {_batch(summary)} rows."]
    if summary.base_loss is not None:
        lines[0] = lines[0][:-1] + f"; before training it was {loss(summary.base_loss)}."
    if len(summary.verdict.ranking) > 1:
        second = summary.verdict.ranking[1]
        assert best.eval_loss is not None
        assert second.eval_loss is not None
        other = ", ".join(f"{key}={shown(value)}" for key, value in second.values.items() if value != best.values[key])
        lines.append(f"Next: {other or 'the same values'}, {second.eval_loss - best.eval_loss:.4f} worse.")
    lines += [
        f"Mind: {edge.key}={shown(edge.value)} is the {edge.side} that was tried; the true best may lie beyond it. "
        f"Widen space.{edge.key}."
        for edge in summary.verdict.edges
    ]
    if summary.config.model.path == "embedded":
        lines.append(
            "This is the small embedded model: its best learning rate is no advice for yours (model=local model.path=...)."
        )
    return lines


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
    return "" if result is best else f"+{result.eval_loss - best.eval_loss:.4f}"


def _state(result: Result, best: Result | None) -> str:
    if best is not None and result.number == best.number:
        return "best"
    return result.status if not result.reason else f"{result.status}: {result.reason}"


def _style(result: Result, best: Result | None) -> str | None:
    if best is not None and result.number == best.number:
        return "bold green"
    return {"diverged": "red", "failed": "red", "pruned": "dim"}.get(result.status)

"""A sweep's result as Markdown: the descriptions of its runs in MLflow."""

import json

from lrsweep.analysis.ranking import Result
from lrsweep.report.summary import Summary
from lrsweep.report.text import label, sentences

# Where a description shows a file that is attached to the sweep's run; the tracker puts in its address.
ARTIFACT = "artifact:"


def sweep_description(summary: Summary) -> str:
    """The result in sentences, the first one bold, with the figure of the loss over the learning rate."""
    first, *others = sentences(summary)
    figure = f"![Final {summary.config.search.objective.name}]({ARTIFACT}loss_over_axis.png)" if summary.results else ""
    return "\n\n".join([f"**{_plain(first)}**", *(f"- {_plain(line)}" for line in others), figure]).strip()


def trial_description(summary: Summary, result: Result) -> str:
    """What the trial's curve shows, the evidence, and what to change."""
    found = summary.diagnoses[result.number]
    lines = [f"**{label(summary, result)}**: {_plain(str(found.evidence['reason']))}"]
    for advice in found.advice:
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in advice.overrides.items())
        lines.append(f"- {_plain(advice.text)}{f': `{overrides}`' if overrides else ''}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """The text with the characters escaped that Markdown takes for emphasis."""
    return text.replace("*", r"\*").replace("_", r"\_")

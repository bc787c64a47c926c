"""Text logs: JSON lines, and what programs print: dictionaries, assignments, columns, and a few trainers' own lines."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from lrsweep.analysis.log_readers.rows import Row, column
from lrsweep.errors import InputError

# Of a longer log only every k-th step is read: this many points show the same as a million. Rare rows are always read.
MOST_STEPS = 20_000
_RARE = re.compile(r"eval|val_|NaN|\bnan\b|Infinity|\binf\b|null")
_DICT = re.compile(r"\{[^{}]*\}")
# A value is text, or a number, which may be wrapped as np.float64(1.2) or tensor(1.2).
_PAIR = re.compile(
    r"""["']([^"']+)["']\s*:\s*(?:["']([^"']*)["']|(?:\w+\.)*(?:float\d+|tensor)\(([^()]*)\)|([^,}\s]+))"""
)

# A number as programs print it.
_VALUE = r"[-+]?(?:\d{1,3}(?:,\d{3})+\.\d+|\d[\d.]*(?:e[-+]?\d+)?|nan|inf)"
_NUMBER = re.compile(_VALUE, re.IGNORECASE)
# The best loss so far is none of this step.
_BEST = re.compile(rf"\b(?:best|min|lowest) (?:\w{{3,10}}[ _])?(?:loss|acc|accuracy)\W{{1,9}}{_VALUE}\b", re.IGNORECASE)
# A key, a value, and perhaps a percent sign.
_ASSIGNED = re.compile(
    r"(?<!\w)(?<!grad )(?<!gradient )"
    r"((?:(?:train|training|val|valid|validation|eval|test|dev)[ _/-]?)?(?:(?:mean|avg|average|total)[ _]?)?"
    r"(?:[tv]?loss(?:es)?|acc|(?:(?:sparse_)?categorical_|binary_)?accuracy)"
    r"|step|num_updates|iter(?:ation)?|epoch|lr|learning[ _]rate|grad[ _]norm)"
    rf"[\]'\"]?(?:\s{{0,9}}[=:\uff1a]\s{{0,9}}|\s{{1,9}}(?:\[\s{{1,9}})?)({_VALUE})\b(%?)",
    re.IGNORECASE,
)
# A loss and the word before it. These words say which rows it is of, or how it is averaged; any other names a part.
_PART = re.compile(rf"(?:(?<=[\s,;|(\[])|^)([a-z][\w-]{{0,30}}|) ?\bloss\s{{0,3}}[=:]\s{{0,3}}{_VALUE}", re.IGNORECASE)
_WHOLE = re.compile(
    "|train(ing)?|vali?(d(ation)?)?|eval(uation)?|test|dev|mean|avg|average|total|overall|combined|sum|full|running|ema"
    "|batch|step|epoch|iter(ation)?|cur(rent)?|final|initial|start(ing)?|best|the|and"
)
# A row that begins with its step, and one of build-nanogpt's log, which has nothing else.
_NUMBERED = re.compile(r"\s*(\d+)\s*\|")
_STEP_SET_LOSS = re.compile(r"(\d+) (train|val) ([-+.\w]+)")
# A loss with its place in brackets, as `train_batch_loss[ 6510 ]: 1.57` or `Loss [1, 100](epoch, minibatch): 9.66`.
_INDEXED = re.compile(
    r"(?<!\w)(\w{0,40}loss)\s?\[\s{0,9}(\d{1,12})\s{0,9}(?:,\s{0,9}\d{1,12}\s{0,9})?\](?:\s?\([^()]{0,40}\))?\s?:\s{0,9}"
    rf"({_VALUE})\b",
    re.IGNORECASE,
)
# `Loss at iteration 100: 0.39`.
_LOSS_AT = re.compile(r"\bloss (?:at|after) (iteration|iter|step|epoch) (\d{1,12})\s?[:=]\s?", re.IGNORECASE)
# `iter: 001, cost: 0.75`, in a log that speaks of no loss.
_COST = re.compile(r"\bcost(?=\W{1,4}(?:\d|nan\b|inf\b))", re.IGNORECASE)
# What `print(loss)` writes, and Marian's lines.
_TENSOR = re.compile(r"tensor\(\s*([-+.\w]+)\s*(?:,.*)?\)")
_MARIAN = re.compile(r"Ep\. (\d+) : Up\. (\d+) :.{0,200}?(Cost|ce-mean-words|cross-entropy)\s?:?\s([-+.\w]+)")
# A line of an evaluation, as `Validation - loss=4.6`, perhaps after a time, a level or an epoch; and the evaluation in
# a line of litgpt, as `val: 8.09`.
_EVALUATED = re.compile(
    r"\W{0,3}(?:\d[-\d/:.,T ]{0,40}\W{0,4})?(?:(?:INFO|DEBUG)\W{1,4})?(?:epoch\W{0,3}\d+(?:/\d+)?\W{1,9})?"
    r"(?:valid|validation|val|eval|evaluation|dev|test)(?![-\w]|\s+every)",
    re.IGNORECASE,
)
# `step 100 | train 2.59 | val 2.61`, which are losses.
_SETS = re.compile(rf"\bstep\s{{1,9}}(\d{{1,12}}) \| train ({_VALUE}) \| val ({_VALUE})\b")
# Keras' line before those of an epoch: `Epoch 53/150`.
_EPOCH = re.compile(r"\s{0,9}Epoch (\d{1,9})/\d{1,9}\s{0,9}")
_LITGPT_VAL = re.compile(r"\bval(?:_loss valid)?:")
_KERAS = re.compile(r"(?:sparse_)?categorical_|binary_")
_AVERAGE = re.compile(r"(mean|avg|average|total)_?")


def json_lines(path: Path, text: str) -> Iterator[Row]:
    """Yields the rows of a JSONL file. Raises InputError for a line that is not a JSON object."""
    lines = text.split("\n")
    every = _every(len(lines))
    for at, line in enumerate(lines, 1):
        if (at % every and not _is_rare(line)) or not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            # A killed run may leave an incomplete last line.
            if at == len(lines):
                return
            raise InputError(f"{path}: line {at} is not JSON") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {at} is not a JSON object")
        yield row


def lines_of(text: str) -> list[str]:
    """The lines of a text. Progress bars write a carriage return where others write a line's end."""
    return text.replace("\r", "\n").split("\n")


def kept(lines: Iterable[str]) -> Iterator[str]:
    """The lines to read: of very many, one in so many, and those that are rare."""
    known = list(lines)
    every = _every(len(known))
    yield from (line for at, line in enumerate(known, 1) if at % every == 0 or _is_rare(line))


def console_rows(text: str) -> Iterator[Row]:
    """Yields the dictionaries with a loss that a program printed among other output."""
    for line in kept(line for line in lines_of(text) if "loss" in line and "{" in line):
        for found in _DICT.findall(line):
            row = {key: text or cast or bare for key, text, cast, bare in _PAIR.findall(found)}
            if any("loss" in key for key in row):
                yield {key: None if value in ("None", "null") else value for key, value in row.items()}


def costs_as_losses(text: str) -> str:
    """The text with its costs as losses, if it speaks of no loss."""
    # Marian has a reader of its own.
    if "Ep." in text or re.search("loss", text, re.IGNORECASE):
        return text
    return _COST.sub("loss", text)


def _without_other_parts(lines: Iterable[str]) -> list[str]:
    """The lines with one of their losses, if they name several and none of them is the whole.

    That with the most values stays, or the first of these: of `recon loss: 5.7, style loss: 0.9`, the next lines may
    hold others, which would look like the same loss later.
    """
    known = list(lines)
    names = Counter(found[1].lower() for line in known for found in _PART.finditer(line))
    if len(names) < 2 or any(map(_WHOLE.fullmatch, names)):
        return known
    chosen = max(names, key=lambda name: names[name])
    return [_PART.sub(lambda found: found[0] if found[1].lower() == chosen else "", line) for line in known]


def assignments(text: str) -> list[Row]:
    """Returns what a program printed on lines with its loss, as `step=10 loss=1.2` or `iter 10: train loss 1.2`."""
    rows: list[Row] = []
    totals: list[Row] = []
    both: list[Row] = []
    # Most lines of a long log have a loss by that name.
    lines = (
        line if "loss" in line or " | train " not in line else _SETS.sub(r"step \1 train loss \2 val loss \3", line)
        for line in lines_of(text)
    )
    for line in _without_other_parts(kept(line for line in _with_epochs(lines) if "loss" in line or "Loss" in line)):
        row: Row = {}
        has_total = False
        evaluated = _EVALUATED.match(line) is not None
        line = _INDEXED.sub(_without_brackets, _LOSS_AT.sub(r"\1=\2 loss=", _BEST.sub("", line)))
        if "loss train:" in line:  # litgpt
            line = _LITGPT_VAL.sub("val_loss:", line.replace("loss train:", "train_loss:"))
        for key, given, percent in _ASSIGNED.findall(line):
            value = given.replace(",", "")
            named = re.sub("[ /-]", "_", key.lower())
            plain = _KERAS.sub("", _AVERAGE.sub("", named))
            # Beside a step's own loss, a running mean of it is not wanted; beside parts of it, the total is.
            whole = named.startswith("total") or (plain == named and not has_total and plain not in ("epoch", "step"))
            has_total = has_total or named.startswith("total")
            if evaluated and plain in ("loss", "acc", "accuracy"):
                plain = f"eval_{plain}"
            if plain not in row or whole:
                row[plain] = f"{value}e-2" if percent and value.replace(".", "", 1).isdigit() else value
        if any("loss" in key for key in row):
            if (numbered := _NUMBERED.match(line)) is not None:
                row.setdefault("step", numbered[1])
            (totals if has_total else rows).append(row)
            both.append(row)
    if any("iter" in row and "step" not in row for row in both):
        for row in both:
            # litgpt counts optimizer steps as well, but not in its evaluations.
            if "iter" in row:
                row.pop("step", None)
    # A few totals among other losses are sums over an epoch.
    return rows if len(totals) < len(rows) / 3 else both


def _with_epochs(lines: Iterable[str]) -> Iterator[str]:
    """The lines, with the epoch before each that Keras writes above them."""
    before = ""
    for line in lines:
        if (header := _EPOCH.fullmatch(line)) is not None:
            before = f"Epoch {header[1]}: "
        yield line if "poch" in line else before + line


def _without_brackets(found: re.Match[str]) -> str:
    """`val_loss[ 10 ]: 1.57` as `val_loss=1.57 step=10`; of two numbers in the brackets, the first is an epoch."""
    name, place, value = found.groups()
    held_out = any(part in name.lower() for part in ("val", "test", "dev"))
    return f"{'val_' * held_out}loss={value} {'epoch' if ',' in found[0].partition(']')[0] else 'step'}={place}"


def numbered_losses(text: str) -> Iterator[Row]:
    """Yields the rows of a log with lines such as `250 val 6.4` and `251 train 6.3`."""
    for line in kept(lines_of(text)):
        if (found := _STEP_SET_LOSS.fullmatch(line.strip())) is not None:
            yield {"step": found[1], f"{found[2]}_loss": found[3]}


def marian(text: str) -> Iterator[Row]:
    """Yields the rows of a log of Marian: costs of training, cross-entropies of evaluations."""
    for line in kept(line for line in lines_of(text) if "Up." in line):
        if (found := _MARIAN.search(line)) is not None:
            epoch, update, name, value = found.groups()
            yield {"epoch": epoch, "step": update, "loss" if name == "Cost" else "eval_loss": value}


def printed_tensors(text: str) -> Iterator[Row]:
    """Yields the losses of a log that consists of what `print(loss)` writes: `tensor(3.22, device='cuda:0')`."""
    lines = [line.strip() for line in lines_of(text) if line.strip()]
    found = [_TENSOR.fullmatch(line) for line in lines]
    if lines and sum(one is not None for one in found) >= 0.8 * len(lines):
        yield from ({"loss": one[1]} for one in found if one is not None)


def aligned_columns(text: str) -> Iterator[Row]:
    """Yields the rows of a table of tabs or spaces with a header anywhere, as `epoch   Step     Loss`."""
    header: list[str] = []
    for line in lines_of(text) if re.search("loss", text, re.IGNORECASE) else ():
        cells = [cell.strip() for cell in re.split(r"\t|\s{2,}", line.strip())]
        if not any(map(_NUMBER.fullmatch, cells)):
            if any("loss" in cell.lower() for cell in cells):
                header = [column(cell) for cell in cells]
            elif len(cells) > 1:
                header = []  # words in columns: another table begins
        elif len(cells) == len(header) > 1:
            yield dict(zip(header, cells, strict=True))


def bare_columns(text: str) -> Iterator[Row]:
    """Yields the rows of a table without a header: a step, a loss, and perhaps an eval loss."""
    lines = kept(line for line in map(str.strip, lines_of(text)) if line)
    cells = [re.split(r"[,;\s]+", line) for line in lines]
    known = [row for row in cells if 2 <= len(row) <= 3 and row[0].isdigit() and all(map(_NUMBER.fullmatch, row[1:]))]
    if len(known) >= 0.9 * len(cells) and all("." in row[1] for row in known if row[1].lower() not in ("nan", "inf")):
        # If there is a header after all, it says what the third is.
        title = cells[0][2] if len(cells[0]) == 3 and cells[0] != known[0] else "val"
        columns = 3 if re.match("val|eval|test|dev", title, re.IGNORECASE) else 2
        yield from (dict(zip(("step", "loss", "eval_loss"), row[:columns], strict=False)) for row in known)


def _every(lines: int) -> int:
    return -(-lines // MOST_STEPS) or 1


def _is_rare(line: str) -> bool:
    return _RARE.search(line) is not None

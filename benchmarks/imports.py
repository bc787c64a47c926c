"""Imports every training config of a trainer's repository: `python benchmarks/imports.py DIALECT CHECKOUT [--half H]`.

CHECKOUT is a folder with the repository's files. A training config is a YAML or JSON file that names a model and a way
to train it; TRL's and ms-swift's are mostly command lines in their documentation and example scripts, which count too.
A file is imported as `lrsweep import` does it: by our engines, or by the trainer's own command, or refused. The script
also looks for keys that would be ignored in silence: for each file of ours, every key must be in the dialect's table or
in its list of harmless keys; for each file of theirs, a trial's file must hold every key of the user's with its value,
apart from the tuned key and from what a trial's own output, logging and evaluation need.

`--half tune` and `--half held_out` take the files by the hash of their path, so that what was tuned on one half can be
judged on the other.
"""

import argparse
import hashlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

from lrsweep import dialects
from lrsweep.config.schema import replace
from lrsweep.dialects import command_line, importer
from lrsweep.dialects.file_editor import read
from lrsweep.dialects.imported_run import Imported, Request
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.trial_file import of_trial
from lrsweep.errors import InputError

# Where each repository has its training configs, and what makes a file one of them.
PLACES = {
    "llamafactory": ("examples",),
    "axolotl": ("examples",),
    "trl": ("examples", "docs", "trl"),
    "ms-swift": ("examples",),
}
MODEL = ("model_name_or_path", "base_model", "model")
# Files that are for other commands than training: they have a model, but nothing to train on.
DATA = (
    "dataset",
    "datasets",
    "dataset_name",
    "train_dataset",
    "pretraining_dataset",
    "tokenized_path",
    "cached_dataset",
)
COMMANDS = {
    "trl": r"^\s*(?:[A-Z_]+=\S+\s+)*trl (?:sft|dpo|kto|grpo|reward|rloo)\b.*",
    "ms-swift": r"^\s*(?:[A-Z_]+=\S+\s+)*swift (?:sft|pt|rlhf)\b.*",
}
# What a trial's own run sets, whatever the user's file says.
OWN = re.compile(
    r"output_dir|logging_\w+|save_\w+|saves_per_epoch|eval\w*|evaluation_strategy|val_s\w+|test_split_size|plot_loss"
    r"|overwrite_output_dir|push_to_hub|hub_\w+|load_best_model_at_end|\w*resume\w*|do_eval|add_version|split_dataset_ratio"
    r"|max_epochs|create_checkpoint_symlink|dataset_name|dataset_config|dataset_train_split|dataset_test_split|datasets"
)
ALIKE = re.compile(
    r"vl\b|vision|video|audio|image|multimodal|mm\b|llava|pixtral|voxtral|omni|ocr\b|tts\b", re.IGNORECASE
)
# What a script's shell would do before the trainer sees the command line.
NUMBER = re.compile(r"^\s*(?:export\s+)?(\w+)=(\d+)\s*$", re.MULTILINE)
QUOTIENT = re.compile(r"\$\(expr (\d+)((?: / \d+)+)\)")


@dataclass(frozen=True)
class Example:
    """A training config: where it is, its content, and the command if it is a command line."""

    where: str
    tree: Mapping[str, Any]
    command: str | None


def examples(dialect: str, checkout: Path, places: Sequence[str]) -> Iterator[Example]:
    """The training configs of a repository, by path."""
    for place in places:
        for file in sorted((checkout / place).rglob("*")):
            where = str(file.relative_to(checkout))
            if file.suffix in (".yaml", ".yml", ".json") and file.stat().st_size < 100_000:
                yield from _configs(file, where)
            elif dialect in COMMANDS and file.suffix in (".md", ".sh", ".py"):
                yield from _command_lines(dialect, file, where)


def _configs(file: Path, where: str) -> Iterator[Example]:
    try:
        tree = read(file)[1]
    except InputError as fault:
        if "model" in file.read_text(errors="replace"):
            print(f"unread: {fault}", file=sys.stderr)
        return
    if any(tree.get(name) for name in MODEL) and any(tree.get(name) for name in DATA):
        yield Example(where, tree, None)


def _command_lines(dialect: str, file: Path, where: str) -> Iterator[Example]:
    text = _evaluated(file.read_text(errors="replace").replace("\\\n", " "))
    for number, found in enumerate(re.finditer(COMMANDS[dialect], text, re.MULTILINE), start=1):
        try:
            words = shlex.split(found[0], comments=True)
            tree, command, _ = command_line.parsed(words)
        except (ValueError, InputError) as fault:
            print(f"unread: {where}#{number}: {fault}", file=sys.stderr)
            continue
        yield Example(f"{where}#{number}", tree, command)


def _evaluated(text: str) -> str:
    """A script with its numbers in the place of their names, and quotients of them worked out."""
    for name, number in NUMBER.findall(text):
        text = re.sub(rf"\$(?:{name}\b|{{{name}}})", number, text)

    def quotient(match: re.Match[str]) -> str:
        whole = int(match[1])
        for part in re.findall(r"\d+", match[2]):
            whole //= int(part)
        return str(whole)

    return QUOTIENT.sub(quotient, text)


def supervised_on_text(dialect: str, tree: Tree, command: str | None) -> bool:
    """Whether a config is supervised LoRA or full fine-tuning of a model on text alone, as its own keys say."""
    names = " ".join(str(tree.get(name, "")) for name in (*MODEL, "dataset", "datasets", "dataset_name", "template"))
    if ALIKE.search(names) or tree.get("processor_type") or tree.get("image_max_pixels"):
        return False
    if any(tree.get(name) for name in ("pretraining_dataset", "train_dataset", "processor_type", "sampler_type")):
        return False
    if tree.get("task_type") not in (None, "causal_lm"):
        return False
    if dialects.TRAINERS[dialect].their_run(tree, command).method is not None or tree.get("stage") == "pt":
        return False
    kinds = ("finetuning_type", "tuner_type", "train_type", "adapter")
    return next((tree[name] for name in kinds if tree.get(name)), "lora") in ("lora", "qlora", "full")


def silent(dialect: str, run: Imported, tree: Tree) -> list[str]:
    """The keys of a file that would be ignored in silence."""
    trainer = dialects.TRAINERS[dialect]
    if not run.reasons:
        known = {key for row in trainer.rows(None) for key in row.theirs} | set(trainer.harmless.split())
        known |= {key for refusal in trainer.refusals for key in refusal.keys.split()}
        return [key for key, value in tree.items() if value is not None and key not in known]
    trial = replace(run.config, {"optimizer.lr": run.config.optimizer.lr * 3})
    file = of_trial(trainer, dialects.tree(trainer, trial, {"optimizer.lr"}), trial, Path("out"))
    tuned = {key for row in trainer.rows(None) if "optimizer.lr" in row.ours for key in row.theirs}
    lost = [
        key for key, value in tree.items() if file.get(key) != value and key not in tuned and not OWN.fullmatch(key)
    ]
    return lost if any(file.get(key) == trial.optimizer.lr for key in tuned) else [*lost, "the tuned rate"]


def main() -> None:
    """Imports the files, prints the table and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dialect", choices=list(PLACES))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--half", choices=("tune", "held_out", "all"), default="all")
    parser.add_argument("--place", help="another folder of the checkout; its table is printed and not kept")
    parser.add_argument("--commit", help="the checkout's commit, for the result")
    parser.add_argument("--verbose", action="store_true", help="print each file")
    arguments = parser.parse_args()
    dialect = arguments.dialect
    halves = {"tune": (0,), "held_out": (1,), "all": (0, 1)}[arguments.half]
    rows, reasons = [], Counter[str]()
    with chdir(arguments.checkout):
        places = (arguments.place,) if arguments.place else PLACES[dialect]
        for example in examples(dialect, Path(), places):
            if hashlib.sha256(example.where.partition("#")[0].encode()).digest()[0] % 2 not in halves:
                continue
            tree, command = example.tree, example.command
            row: dict[str, Any] = {"file": example.where, "text": supervised_on_text(dialect, tree, command)}
            try:
                run = importer.imported(
                    arguments.dialect, example.tree, example.where, Request(command=example.command)
                )
                row |= {
                    "by": "theirs" if run.reasons else "ours",
                    "silent": silent(arguments.dialect, run, example.tree),
                }
                row["because"] = [reason.partition(":")[0] for reason in run.reasons]
            except InputError as fault:
                row |= {"by": "refused", "silent": [], "because": [str(fault)]}
            rows.append(row)
            if row["text"]:
                reasons.update({_kind(reason) for reason in row["because"]})
            if arguments.verbose or row["silent"] or row["by"] == "refused":
                print(row)
    text = [row for row in rows if row["text"]]
    counts = {by: sum(row["by"] == by for row in rows) for by in ("ours", "theirs", "refused")}
    summary = {
        "dialect": dialect,
        "half": arguments.half,
        "commit": arguments.commit,
        "files": len(rows),
        **counts,
        "with a key ignored in silence": sum(bool(row["silent"]) for row in rows),
        "supervised on text": len(text),
        "of these ours": sum(row["by"] == "ours" for row in text),
    }
    print(table(list(summary), [list(summary.values())]))
    print("why supervised runs on text go their way:", reasons.most_common(40))
    if arguments.half == "all" and not arguments.place:
        save(RESULTS / "imports" / f"{dialect}.json", {**about(), **summary}, rows=rows)


def _kind(reason: str) -> str:
    """A reason without the value it names."""
    return reason.partition("=")[0].partition(":")[0]


if __name__ == "__main__":
    main()

"""`lrsweep import FORMAT FILE`: turns another trainer's config into a sweep."""

from collections.abc import Sequence
from pathlib import Path

from lrsweep.cli.arguments import ArgumentParser, file_path
from lrsweep.errors import InputError


def run(argv: Sequence[str]) -> int:
    """Writes the sweep file. Raises LrsweepError."""
    parser = ArgumentParser(
        "import",
        "turn another trainer's config into a sweep of learning rates around its own; instead of FILE, a command line "
        "may follow: lrsweep import trl -- trl sft --model_name_or_path ...",
    )
    parser.add_argument(
        "format",
        metavar="FORMAT",
        help="the trainer, such as llamafactory, transformers, trl, axolotl, ms-swift",
    )
    parser.add_argument("file", type=file_path, metavar="FILE", nargs="?", help="the trainer's YAML or JSON file")
    parser.add_argument(
        "--out", type=file_path, metavar="FILE", help="the file to write (default: sweeps/, by FILE's name)"
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "ours", "theirs"),
        default="auto",
        help="ours trains many trials at once; theirs is your trainer's own command; auto is ours where it trains "
        "exactly what the file says (default: auto)",
    )
    parser.add_argument("--command", metavar="TEXT", help="your trainer's command, such as 'trl dpo --config {config}'")
    parser.add_argument("--python", metavar="FILE", help="the Python of your trainer's environment")
    parser.add_argument("--model", metavar="DIR", help="where the model is, if not where the file says")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data is, if not where the file says")
    given, line = list(argv), None
    if "--" in given:
        given, line = given[: given.index("--")], given[given.index("--") + 1 :]
    arguments = parser.parse_args(given)
    if (arguments.file is None) == (line is None):
        parser.error("give either FILE, or -- and the trainer's command line")
    from lrsweep.dialects import TRAINERS, command_line, importer, sweep_file
    from lrsweep.dialects.file_editor import read
    from lrsweep.dialects.imported_run import Request
    from lrsweep.files.atomic import write_text

    if arguments.format not in TRAINERS:
        raise InputError(f"import {arguments.format}: no such format (choices: {', '.join(TRAINERS)})")
    if line is None:
        file, command = arguments.file, arguments.command
        out = sweep_file.place(arguments.out, file)
        _, tree = read(file)
    else:
        trainer = TRAINERS[arguments.format]
        tree, command, name = command_line.parsed(line, trainer.config_argument, arguments.command)
        file = ""
        out = sweep_file.place(arguments.out, Path(name))
    request = Request(arguments.engine, command, arguments.python, arguments.model, arguments.data_dir)
    imported = importer.imported(arguments.format, tree, str(file), request)
    write_text(out, sweep_file.text(imported, out.stem))
    print(f"wrote {out}; run it with: lrsweep +sweep={out.stem}{''.join(f' {key}=...' for key in imported.missing)}")
    if imported.reasons:
        print(f"each trial runs {imported.config.engine.command}, because of {'; '.join(imported.reasons)}")
    elif imported.kept:
        print(f"kept for the export, no effect on the sweep: {', '.join(imported.kept)}")
    for note in imported.notes:
        print(f"note: {note}")
    return 0

"""`lrsweep export NAME --to FORMAT`: writes the best config of a sweep for your trainer."""

import sys
from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser, file_path


def run(argv: Sequence[str]) -> int:
    """Prints or writes the best config. Raises LrsweepError."""
    parser = ArgumentParser("export", "write the best config of a sweep for your trainer")
    parser.add_sweep_name()
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="your trainer's name, such as llamafactory, transformers, trl, axolotl, or hydra",
    )
    parser.add_argument(
        "--base",
        type=file_path,
        metavar="FILE",
        help="your own config: only its tuned keys change, comments and order stay",
    )
    parser.add_argument(
        "--target-version",
        metavar="V",
        help="the version of LLaMA-Factory, or of transformers (also under TRL), to write keys for (default: today's)",
    )
    parser.add_argument("--out", type=file_path, metavar="FILE", help="the file to write (default: the terminal)")
    arguments = parser.parse_args(argv)
    from lrsweep import dialects
    from lrsweep.dialects.file_editor import is_json
    from lrsweep.dialects.header import header
    from lrsweep.files.atomic import write_text
    from lrsweep.files.paths import existing_sweep
    from lrsweep.report.summary import read_summary

    summary = read_summary(existing_sweep(arguments.name))
    text = dialects.export(summary, arguments.to, arguments.base, arguments.target_version)
    if arguments.base is not None and is_json(arguments.base):
        print(header(summary), end="", file=sys.stderr)  # JSON has no comments
    if arguments.out is None:
        print(text, end="")
    else:
        write_text(arguments.out, text)
        print(f"wrote {arguments.out}")
    return 0

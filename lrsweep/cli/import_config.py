"""`lrsweep import FORMAT FILE`: turns another trainer's config into a sweep."""

from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser, file_path


def run(argv: Sequence[str]) -> int:
    """Writes the sweep file. Raises LrsweepError."""
    parser = ArgumentParser("import", "turn another trainer's config into a sweep of learning rates around its own")
    parser.add_argument(
        "format", metavar="FORMAT", help="the trainer's name, such as llamafactory, transformers, trl, axolotl"
    )
    parser.add_argument("file", type=file_path, metavar="FILE", help="the trainer's YAML file")
    parser.add_argument(
        "--out", type=file_path, metavar="FILE", help="the file to write (default: sweeps/, by FILE's name)"
    )
    arguments = parser.parse_args(argv)
    from lrsweep.dialects import importer
    from lrsweep.files.atomic import write_text

    out = importer.place(arguments.out, arguments.file)
    imported = importer.imported(arguments.format, arguments.file)
    write_text(out, importer.text(imported, out.stem))
    print(f"wrote {out}; run it with: lrsweep +sweep={out.stem}{''.join(f' {key}=...' for key in imported.missing)}")
    if imported.kept:
        print(f"kept for the export, no effect on the sweep: {', '.join(imported.kept)}")
    for note in imported.notes:
        print(f"note: {note}")
    return 0

"""`lrsweep ui [NAME]`: serves MLflow's UI with this folder's runs, and opens a sweep in it."""

import json
import sys
from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import InputError
from lrsweep.files.paths import SweepFolder, existing_names, existing_sweep


def run(argv: Sequence[str]) -> int:
    """Serves the UI until it is stopped. Raises LrsweepError."""
    parser = ArgumentParser("ui", "serve MLflow's UI on this folder's runs, on 127.0.0.1")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep to open (default: the latest one)")
    parser.add_argument("--uri", help="another tracking store (default: sqlite:///mlflow.db)")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--no-browser", action="store_true", help="print the links only")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.port < 65536:
        raise InputError(f"ui: --port {arguments.port}: a port is a number from 1 to 65535")
    if arguments.name is not None:
        arguments.name = existing_sweep(arguments.name).path.name
    from lrsweep.tracking import default_uri, serve_ui

    uri = default_uri() if arguments.uri is None else arguments.uri
    links = _links(uri, arguments.port, arguments.name)
    # Without a terminal nobody looks.
    browse = sys.stdout.isatty() and not arguments.no_browser
    return serve_ui(uri, arguments.port, links, browse=browse)


def _links(uri: str, port: int, opened: str | None) -> dict[str, str]:
    """The pages of the sweeps that are tracked in the store, by name; the one to open is the last.

    Args:
        uri: The store.
        port: The port that the UI will listen on.
        opened: The sweep to open; None is the latest one.
    """
    found: dict[str, tuple[bool, float, str]] = {}
    for name in existing_names():
        summary = SweepFolder(name).summary
        try:
            links = json.loads(summary.read_text(encoding="utf-8"))["links"]
            if uri in links["ui_command"] and links["compare_url"]:
                link = links["compare_url"].replace("http://127.0.0.1:5000/", f"http://127.0.0.1:{port}/", 1)
                found[name] = (name == opened, summary.stat().st_mtime, link)
        # A sweep without a summary, or with a damaged one, has no link.
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {name: found[name][2] for name in sorted(found, key=found.__getitem__)}

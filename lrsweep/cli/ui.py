"""`lrsweep ui`: serves MLflow's UI with this folder's runs."""

from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import InputError


def run(argv: Sequence[str]) -> int:
    """Serves the UI until it is stopped. Raises LrsweepError."""
    parser = ArgumentParser("ui", "serve MLflow's UI on this folder's runs, on 127.0.0.1")
    parser.add_argument("--uri", help="another tracking store (default: sqlite:///mlflow.db)")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.port < 65536:
        raise InputError(f"ui: --port {arguments.port}: a port is a number from 1 to 65535")
    from lrsweep.tracking import default_uri, serve_ui

    return serve_ui(default_uri() if arguments.uri is None else arguments.uri, port=arguments.port)

"""The command line: a subcommand if the first word is one, else a sweep; everything else is Hydra's."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from lrsweep import __version__, masking
from lrsweep.errors import InputError, LrsweepError


def main() -> None:
    """Runs the command line and exits with its code; a fault is one line on stderr."""
    try:
        code = run(sys.argv[1:])
    except LrsweepError as fault:
        print(masking.mask(f"lrsweep: {' '.join(str(fault).splitlines())}"), file=sys.stderr)
        code = fault.exit_code
    except KeyboardInterrupt:
        print("lrsweep: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read the output has gone; what is left to print goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Does what `argv` says; returns the exit code. Raises LrsweepError."""
    if argv and argv[0] in _COMMANDS:
        return _COMMANDS[argv[0]](argv[1:])
    if argv == ["--version"]:
        print(f"lrsweep {__version__}")
        return 0
    from lrsweep import compose

    if any(argument.startswith("-") and "=" not in argument for argument in argv):
        compose.hydra_flags(argv)
        return 0
    if not argv:
        raise InputError(
            f"choose a sweep: lrsweep +sweep=NAME (there are {', '.join(compose.sweep_names())}); more: --help"
        )
    if "=" not in argv[0]:
        raise InputError(
            f"{argv[0]}: no such command (choices: {', '.join(_COMMANDS)}); a sweep is run with +sweep=NAME"
        )
    return _sweep(argv)


def _sweep(argv: Sequence[str]) -> int:
    from lrsweep import compose
    from lrsweep.libraries import quiet

    config = compose.sweep_config(argv)
    quiet()
    from rich.console import Console

    from lrsweep.links import check_place
    from lrsweep.outputs import SweepFolder
    from lrsweep.report.screen import open_screen
    from lrsweep.report.text import print_summary
    from lrsweep.sweep import InterruptedSweepError
    from lrsweep.sweep import run as run_sweep

    check_place(SweepFolder(config.name).path)
    console = Console()
    try:
        summary = run_sweep(config, open_screen(console))
    except InterruptedSweepError as interrupted:
        # Fresh was what came before; from here on it would begin anew.
        command = shlex.join(["lrsweep", *(word for word in argv if word != "resume=fresh")])
        interrupted.args = (f"interrupted; go on from here with: {command}",)
        raise
    print_summary(console, summary, SweepFolder(config.name))
    return 0


def _export(argv: Sequence[str]) -> int:
    parser = _parser("export", "write the best config of a sweep for your trainer")
    parser.add_argument("name", metavar="NAME", help="the sweep: its folder under outputs/")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="llamafactory, transformers, trl, axolotl or hydra"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="your own config: only the tuned keys change in it, comments and order stay",
    )
    parser.add_argument(
        "--target-version",
        metavar="V",
        help="of LLaMA-Factory, or of transformers (also under TRL): its keys (default: today's)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default: the terminal)")
    arguments = parser.parse_args(argv)
    from lrsweep import interop, outputs
    from lrsweep.report.summary import read_summary

    summary = read_summary(outputs.sweep_folder(arguments.name))
    text = interop.export(summary, arguments.to, arguments.base, arguments.target_version)
    if arguments.out is None:
        print(text, end="")
    else:
        outputs.write(arguments.out, text)
        print(f"wrote {arguments.out}")
    return 0


def _import(argv: Sequence[str]) -> int:
    parser = _parser("import", "make a sweep of another trainer's config: that run, at learning rates around its own")
    parser.add_argument("format", metavar="FORMAT", help="llamafactory, transformers, trl or axolotl")
    parser.add_argument("file", type=Path, metavar="FILE", help="the trainer's YAML file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default: sweeps/, under the file's name)")
    arguments = parser.parse_args(argv)
    from lrsweep import outputs
    from lrsweep.interop import sweepfile

    out = sweepfile.place(arguments.out, arguments.file)
    run = sweepfile.imported(arguments.format, arguments.file)
    outputs.write(out, sweepfile.text(run, out.stem))
    print(f"wrote {out}; run it with: lrsweep +sweep={out.stem}{''.join(f' {key}=...' for key in run.missing)}")
    if run.kept:
        print(f"kept for the export, of no effect here: {', '.join(run.kept)}")
    for note in run.notes:
        print(f"note: {note}")
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = _parser("report", "show a sweep's result and write its report.html anew")
    parser.add_argument("name", metavar="NAME", help="the sweep: its folder under outputs/")
    arguments = parser.parse_args(argv)
    from rich.console import Console

    from lrsweep import outputs
    from lrsweep.report.conclusion import conclude
    from lrsweep.report.summary import read_summary
    from lrsweep.report.text import print_summary

    folder = outputs.sweep_folder(arguments.name)
    summary = read_summary(folder)
    if not summary.results:
        raise InputError(f"{arguments.name}: no trial has ended yet; run the sweep on")
    conclude(summary, folder)
    print_summary(Console(), summary, folder)
    return 0


def _diagnose(argv: Sequence[str]) -> int:
    parser = _parser("diagnose", "say what loss curves show, and what to change")
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="trainer_state.json, trainer_log.jsonl, metrics.jsonl, or the id of an MLflow run in this folder's store",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--plot", action="store_true", help="write a picture of each curve beside its file, as FILE.png"
    )
    arguments = parser.parse_args(argv)
    import json

    from lrsweep import curves, histories
    from lrsweep.tracking import run_history

    entries = []
    read = {file: histories.read(file, run_history) for file in arguments.files}
    for file, curve in read.items():
        diagnosis = curves.diagnose(curve, [other for name, other in read.items() if _same_sweep(file, name)])
        entries.append({"file": file, **asdict(diagnosis)})
        if not arguments.json:
            print(f"{file}: {diagnosis.label}: {diagnosis.evidence['reason']}")
            for advice in diagnosis.advice:
                overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in advice.overrides.items())
                print(f"    {advice.text}{f': {overrides}' if overrides else ''}")
        if arguments.plot:
            from lrsweep.report.curve import picture

            picture(file, curve, diagnosis, Path(f"{file}.png"))
    if arguments.json:
        print(json.dumps(entries, indent=1))
    return 0


def _find_lr(argv: Sequence[str]) -> int:
    parser = _parser("find-lr", "a learning-rate range test on the composed config: proposes a range to sweep")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the config, as for a sweep; its space counts not"
    )
    parser.add_argument("--from", dest="low", type=float, default=1e-7, metavar="LR", help="first rate (default: 1e-7)")
    parser.add_argument("--to", dest="high", type=float, default=10.0, metavar="LR", help="last rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps, one at each rate (default: 100)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture: .png, .svg or .pdf")
    arguments = parser.parse_intermixed_args(argv)
    import json

    from lrsweep import compose, find_lr
    from lrsweep.libraries import quiet

    config = compose.sweep_config(arguments.overrides)
    rates = find_lr.rates(arguments.low, arguments.high, arguments.steps)
    if arguments.plot is not None:
        find_lr.check_plot(arguments.plot)
    quiet()
    logging.captureWarnings(True)
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    test = find_lr.find(
        config, rates,
        lambda points: track(points, "range test", len(rates), console=console, transient=True,
                             disable=not console.is_terminal),
    )  # fmt: skip
    ready = masking.mask(find_lr.command(config, test, arguments.overrides)) if test.lrs else ""
    print(json.dumps(find_lr.as_json(test, ready), indent=1) if arguments.json else find_lr.words(test, ready))
    if arguments.plot is not None:
        find_lr.picture(test, arguments.plot)
    if not test.lrs:
        raise find_lr.NoRangeError(f"no range found: {test.reason}")
    return 0


def _same_sweep(file: str, other: str) -> bool:
    """Whether two files are logs of different trials of one sweep of ours: outputs/NAME/trials/0007/metrics.jsonl."""
    mine, theirs = Path(file), Path(other)
    return mine != theirs and mine.parent.parent == theirs.parent.parent and mine.parent.parent.name == "trials"


def _ui(argv: Sequence[str]) -> int:
    parser = _parser("ui", "MLflow's UI on this folder's runs, on 127.0.0.1")
    parser.add_argument("--uri", help="another tracking store (default: sqlite:///mlflow.db)")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.port < 65536:
        raise InputError(f"ui: --port {arguments.port}: a port is a number from 1 to 65535")
    from lrsweep.tracking import default_uri, serve_ui

    return serve_ui(arguments.uri or default_uri(), port=arguments.port)


def _sync(argv: Sequence[str]) -> int:
    parser = _parser("sync", "send MLflow what a sweep's files have and it has not: after an outage, or a kill")
    parser.add_argument("name", metavar="NAME", help="the sweep: its folder under outputs/")
    parser.add_argument("--uri", help="the tracking store (default: the sweep's own)")
    parser.add_argument("--storage", metavar="URL", help="the study's database, where its URL has a password")
    arguments = parser.parse_args(argv)
    from rich.console import Console

    from lrsweep.libraries import quiet
    from lrsweep.report.screen import open_screen
    from lrsweep.sync import sync

    quiet()
    print(sync(arguments.name, arguments.uri, arguments.storage, open_screen(Console())))
    return 0


def _doctor(argv: Sequence[str]) -> int:
    _parser("doctor", "what this machine has and what will be used").parse_args(argv)
    from rich.console import Console

    from lrsweep.machine import doctor

    doctor(Console())
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument is one line like any other fault."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('lrsweep ')}: {message}; see {self.prog} --help")


def _parser(command: str, description: str) -> _Parser:
    return _Parser(prog=f"lrsweep {command}", description=description)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "export": _export,
    "import": _import,
    "report": _report,
    "diagnose": _diagnose,
    "find-lr": _find_lr,
    "sync": _sync,
    "ui": _ui,
    "doctor": _doctor,
}

if __name__ == "__main__":
    main()

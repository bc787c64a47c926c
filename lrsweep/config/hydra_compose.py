"""The door: argv -> Hydra -> SweepConfig. DictConfig does not go past this file.

Groups come from the packaged `conf/` and the user's own `./conf`; sweeps from the packaged `sweeps/` and `./sweeps`.
"""

import contextlib
import difflib
import io
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrsweep.config import yaml_safety
from lrsweep.config.schema import SweepConfig, did_you_mean, flatten, validate
from lrsweep.errors import InputError
from lrsweep.files import redaction

_PACKAGE = Path(__file__).parent.parent


def _packaged(installed: str, checkout: str) -> Path:
    """A folder of configs: inside the wheel, or beside the package in a checkout (editable installs have only that)."""
    folder = _PACKAGE / installed
    return folder if folder.is_dir() else _PACKAGE.parent / checkout


CONF = _packaged("_conf", "conf")
SWEEPS = _packaged("_sweeps", "sweeps")
_SHOWN = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Hydra's flags that print something, and the words that may follow them; the others run things, or change where configs lie.
_FLAGS: dict[str, tuple[str, ...]] = {
    "--help": (),
    "--hydra-help": (),
    "--cfg": _SHOWN,
    "--resolve": (),
    "--info": _INFO,
    "-h": (),
    "-c": _SHOWN,
    "-i": _INFO,
}
# A secret is of use there, and masked wherever the config is shown.
_MAY_BE_SECRET = ("search.storage", "tracking.uri", "engine.command")


def sweep_config(overrides: Sequence[str]) -> SweepConfig:
    """The composed, validated config. Raises InputError with one line for anything wrong with it."""
    given = [_normal(override) for override in overrides]
    config, choices = _composed(list(given))
    _refuse_ignored(given, config)
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"{missing[0]}: missing; set {missing[0]}=...")
        tree: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as fault:
        raise InputError(_one_line(fault)) from None
    if tree.get("name") is None:
        tree["name"] = choices.get("sweep") or "sweep"
    validated = validate(tree)
    _refuse_secrets(validated)
    return validated


def hydra_flags(argv: Sequence[str]) -> None:
    """Hydra's own flags (--help, --cfg job, --info): printed by Hydra itself, and nothing is run."""
    if "-m" in argv or "--multirun" in argv:
        raise InputError("--multirun is Hydra's own grid; lrsweep has its own: space.optimizer.lr=[1e-5,1e-4]")
    _check_flags(argv)
    arguments = [_normal(argument) for argument in argv]
    # Composed here first, so that what is wrong with it is told as everywhere else.
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    flags = [argument for argument in arguments if argument not in overrides]
    _composed(overrides)
    sys.argv = ["lrsweep", *_own_conf(), *overrides, *flags]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            hydra_main(version_base="1.3", config_path=str(CONF), config_name="config")(_run_nothing)()
    finally:
        print(redaction.mask(printed.getvalue()), end="")


def sweep_names() -> list[str]:
    """Every sweep that +sweep= can name here."""
    return sorted(_sweep_files())


def _check_flags(argv: Sequence[str]) -> None:
    """Raises InputError for a flag that is none, or would run something, and for a value that its flag does not take."""
    before = ""
    for argument in (*argv, ""):
        words = _FLAGS.get(before, ())
        if words == _SHOWN and argument not in words:
            raise InputError(f"{before} {argument}: needs one of {', '.join(words)}")
        if argument and argument not in _FLAGS and argument not in words and "=" not in argument:
            known = ", ".join(flag for flag in _FLAGS if flag.startswith("--"))
            raise InputError(f"{argument}: no such flag (choices: {known}); a sweep is run without one")
        before = argument


def _refuse_ignored(overrides: Sequence[str], config: DictConfig) -> None:
    """Raises InputError for a group's option of which a sweep file that says the whole group itself leaves nothing."""
    sweep = next((override for override in overrides if override.startswith("+sweep=")), None)
    if sweep is None:
        return
    # Of several options of one group, Hydra takes the last.
    chosen = {group: override for override in overrides if (CONF / (group := override.partition("=")[0])).is_dir()}
    for group, override in chosen.items():
        others = [other for other in overrides if other.partition("=")[0] != group]
        options = [other for name, other in chosen.items() if name != group]
        try:
            if _composed(list(others))[0] != config:
                continue
            default, wanted = (flatten(_plain(_composed(words)[0])) for words in (list(options), [*options, override]))
        except InputError:
            continue  # without the option nothing fits together: so it does say something
        # What is lost may be what the sweep file says anyway, or the command line.
        own = flatten(_plain(config))
        given = {other.partition("=")[0].lstrip("+") for other in others} | {
            key for key, value in wanted.items() if value == "???"
        }
        lost = [key for key, value in wanted.items() if key not in given and default.get(key) != value != own.get(key)]
        if lost:
            key = next((key for key in lost if key.endswith((".mode", ".name", ".quantization"))), lost[0])
            raise InputError(
                f"{override}: {sweep.lstrip('+')} says all of it itself, and nothing of the option is left; set its keys "
                f"({key}={wanted[key]}), or take them out of the sweep file"
            )


def _plain(config: DictConfig) -> dict[str, Any]:
    tree: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return tree


def _refuse_secrets(config: SweepConfig) -> None:
    """Whatever masking would change cannot be written and work: it must not be there. Raises InputError."""
    for key, value in flatten(config.model_dump()).items():
        if key not in _MAY_BE_SECRET and redaction.masked({key: value}) != {key: value}:
            shown = redaction.masked({key: value})[key]
            raise InputError(
                f"{key}={' '.join(str(shown).split())[:200]}: holds a secret, and the config is written into the sweep's "
                "files; take it out, use the environment"
            )


def _composed(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Hydra's config, and the option chosen in each group. Puts into `overrides` what Hydra needs besides."""
    with warnings.catch_warnings():
        # A sweep file's header is read by _offer_sweeps; Hydra has no way to be told so.
        warnings.simplefilter("ignore", UserWarning)
        _offer_sweeps(overrides)
        config = None
        while config is None:
            try:
                with initialize_config_dir(str(CONF), version_base="1.3", job_name="lrsweep"):
                    config = compose("config", overrides=[*_own_conf(), *overrides], return_hydra_config=True)
            # What Hydra is given is the user's; beside its own errors, its parsers let Python's through.
            except (
                HydraException,
                OmegaConfBaseException,
                yaml.YAMLError,
                ValueError,
                TypeError,
                RecursionError,
            ) as fault:
                if not _made_way(overrides, fault):
                    raise InputError(_one_line(fault, overrides)) from None
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, choices


def _made_way(overrides: list[str], fault: Exception) -> bool:
    """Takes away the sweep file's list of choices that a range is to replace: Hydra would merge the two, and cannot."""
    match = re.search(r"Error merging override \+\+(space\.[^=\s]+)=", str(fault))
    if match is None or f"~{match[1]}" in overrides:
        return False
    at = next(i for i, override in enumerate(overrides) if override.startswith(f"++{match[1]}="))
    overrides.insert(at, f"~{match[1]}")
    return True


def _run_nothing(_: DictConfig) -> None:
    raise InputError("that flag goes with --cfg job or --help only")


def _normal(override: str) -> str:
    """Lets `sweep=x` stand for `+sweep=x`, and new keys be set where the config is open: space, kwargs, columns, options."""
    if override.startswith("sweep="):
        return f"+{override}"
    open_places = r"(space|data\.columns|executor\.options|\w+\.kwargs)[.=]"
    return f"++{override}" if re.match(open_places, override) else override


def _own_conf() -> list[str]:
    own = Path.cwd() / "conf"
    if not own.is_dir() or own.resolve() == CONF.resolve():
        return []
    for path in sorted(own.rglob("*.yaml")):
        yaml_safety.check_file(path, _shown(path))
    return [f"hydra.searchpath=[file://{own}]"]


def _sweep_files() -> dict[str, Path]:
    folders = [SWEEPS, Path.cwd() / "sweeps"]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _offer_sweeps(overrides: Sequence[str]) -> None:
    """Registers every sweep file as an option of the group `sweep`; a broken one counts only if it is asked for."""
    chosen = {
        value for key, _, value in (override.lstrip("+").partition("=") for override in overrides) if key == "sweep"
    }
    store = ConfigStore.instance()
    for name, path in _sweep_files().items():
        try:
            node = _sweep_file(path)
        except InputError:
            if name in chosen:
                raise
            continue
        store.store(group="sweep", name=name, node=node, package="_global_", provider="sweeps")


def _sweep_file(path: Path) -> DictConfig:
    yaml_safety.check_file(path, _shown(path))
    try:
        node = OmegaConf.load(path)
    except OSError as fault:
        raise InputError(f"{_shown(path)}: {fault.strerror}") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as fault:
        raise InputError(f"{_shown(path)}: not valid YAML: {_first_line(fault)}") from None
    if not isinstance(node, DictConfig):
        raise InputError(f"{_shown(path)}: a sweep file is a mapping of config keys")
    return node


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _first_line(fault: Exception) -> str:
    mark = getattr(fault, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(fault, 'problem', '')}"
    return str(fault).strip().splitlines()[0]


def _culprit(overrides: Sequence[str]) -> str:
    """The override that cannot be read or is no choice of its group's, where Hydra's error does not say which it was."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):
            return text
        if (
            (CONF / parsed.key_or_group).is_dir()
            and not parsed.is_delete()
            and not isinstance(parsed.value(), str | list)
        ):
            return text
    return ""


def _one_line(fault: Exception, overrides: Sequence[str] = ()) -> str:
    """Hydra's error as one line that names the key, the rule and the choices."""
    text = str(fault)
    if isinstance(fault, MissingConfigException) and fault.missing_cfg_file:
        file = str(fault.missing_cfg_file)
        group, _, option = file.partition("/") if ".." in file else file.rpartition("/")
        choices = sweep_names() if group == "sweep" else sorted(fault.options or [])
        near = difflib.get_close_matches(option, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{group}={option}: no such option{hint} (choices: {', '.join(choices)})"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        groups = [child.name for child in CONF.iterdir() if child.is_dir() and "." not in key]
        near = difflib.get_close_matches(key, groups, n=1)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else did_you_mean(key))
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match[1].partition("=")
        return f"{match[1]}: several values make an axis; write space.{key.lstrip('+')}=[{values}]"
    if isinstance(fault, OverrideParseException):
        return f"{fault.override}: not an override; write key=value, and quote values that have spaces or brackets"
    if isinstance(fault, yaml.YAMLError):
        where = getattr(getattr(fault, "problem_mark", None), "name", "config")
        return f"{where}: not valid YAML: {_first_line(fault)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    key = key or _culprit(overrides)[:100]
    return f"{key}: {lines[0]}" if key else lines[0]

"""Composes the config: argv -> Hydra -> SweepConfig. DictConfig is used here and in `user_files.py` only.

Groups come from the packaged `conf/` and the user's own `./conf`; sweeps from the packaged `sweeps/` and `./sweeps`.
"""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrsweep.config.config_files import CONF, own_conf, sweep_files
from lrsweep.config.help_text import help_text
from lrsweep.config.hydra_errors import first_line, one_line
from lrsweep.config.schema import SweepConfig, flatten, is_mapping, is_text, validate
from lrsweep.config.search_space import refuse_group
from lrsweep.config.user_files import read_config
from lrsweep.config.yaml_safety import YAML_FAULTS
from lrsweep.errors import InputError
from lrsweep.files.redaction import mask, masked

_SHOWN = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Hydra's flags that print something, with the values that may follow them. Its other flags run something, or change
# where configs are found.
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
# Keys that may hold a secret: they need it, and it is masked wherever the config is shown.
_MAY_BE_SECRET = ("search.storage", "tracking.uri", "engine.command")
_GLOBAL = re.compile(r"^#\s*@package\s+_global_", re.MULTILINE)


def sweep_config(overrides: Sequence[str]) -> SweepConfig:
    """The composed, validated config.

    Args:
        overrides: The command line's arguments: +sweep=NAME, group=option, key=value.

    Raises:
        InputError: The config is invalid; the message is one line.
    """
    given = [_normal(override) for override in overrides]
    chosen = _chosen_sweep(given)
    sweep = chosen or DictConfig({})
    config, choices = _composed(_ranges_replace_lists(given, sweep))
    if chosen is not None:
        _refuse_ignored(given, chosen, config)
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"{missing[0]}: missing; set {missing[0]}=...")
        tree: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as fault:
        raise InputError(one_line(fault, CONF, sweep_names())) from None
    if tree.get("name") is None:
        tree["name"] = choices.get("sweep") or "sweep"
    validated = validate(tree)
    _refuse_secrets(validated)
    return validated


def hydra_flags(argv: Sequence[str]) -> None:
    """Handles Hydra's own flags (--help, --cfg job, --info): Hydra prints, and nothing is run. Raises InputError."""
    # Hydra's parser takes --flag=value too.
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("-") else [word])]
    if "-m" in argv or "--multirun" in argv:
        raise InputError("--multirun is Hydra's own grid; lrsweep has its own: space.optimizer.lr=[1e-5,1e-4]")
    _check_flags(argv)
    arguments = [_normal(argument) for argument in argv]
    overrides = [argument for argument in arguments if _is_override(argument)]
    flags = [argument for argument in arguments if argument not in overrides]
    overrides = _ranges_replace_lists(overrides, _chosen_sweep(overrides) or DictConfig({}))
    # Composed here first, so that errors are reported as everywhere else: Hydra's main would print them itself.
    config, _ = _composed(overrides)
    if flags in (["--help"], ["-h"]):
        print(mask(help_text(OmegaConf.to_yaml(config))), end="")
        return
    sys.argv = ["lrsweep", *overrides, *flags]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            hydra_main(version_base="1.3", config_path=str(CONF), config_name="config")(_run_nothing)()
    except ValueError as fault:
        raise InputError(f"{' '.join(flags)}: {first_line(fault)}") from None
    finally:
        print(mask(printed.getvalue()), end="")


def sweep_names() -> list[str]:
    """Every name that +sweep= accepts in this folder, sorted."""
    return sorted(sweep_files())


# Values that Hydra reads as the user means them: quoted ones, null, missing ones, and interpolations.
_AS_IT_IS = re.compile(r"""'.*'|".*"|null|\?\?\?|.*\$\{.*|""", re.DOTALL)
# What Hydra's quoted strings need twice: backslashes before a quote or the end; the quote itself gets one.
_QUOTE = re.compile(r"\\+(?='|$)")


def _check_flags(argv: Sequence[str]) -> None:
    """Raises InputError for an unknown flag, a flag that would run something, or a flag without its value."""
    before = ""
    for argument in (*argv, ""):
        values = _FLAGS.get(before, ())
        if values == _SHOWN and argument not in values:
            raise InputError(f"{before} {argument}: needs one of {', '.join(values)}")
        if _is_stray(argument, values):
            known = ", ".join(flag for flag in _FLAGS if flag.startswith("--"))
            raise InputError(f"{argument}: no such flag (choices: {known}); a sweep is run without one")
        before = argument


def _is_stray(argument: str, values: Sequence[str]) -> bool:
    """Whether an argument is neither a flag, nor an override, nor one of the values of the flag before it."""
    return argument not in ("", *_FLAGS, *values) and "=" not in argument and not argument.startswith("~")


def _is_override(argument: str) -> bool:
    """Whether an argument sets a key or, as `~key`, removes it."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _run_nothing(_: DictConfig) -> None:
    raise InputError("that flag goes with --cfg job or --help only")


def _normal(override: str) -> str:
    """Accepts `sweep=x` for `+sweep=x`, and new keys in mappings."""
    if override.startswith("sweep="):
        return f"+{override}"
    key, _, value = override.partition("=")
    if not key.strip("+~ "):
        raise InputError(f"{override}: not an override; write key=value")
    _refuse_hydras_own_sweeps(override, key.lstrip("+"), value)
    if key.lstrip("+").startswith("space.") and value.startswith("["):
        # Hydra cannot merge it with a sweep file's keys of the group.
        refuse_group(key.lstrip("+").removeprefix("space."))
    if is_text(key) and not _AS_IT_IS.fullmatch(value):
        return f"{key}={quoted(value)}"
    inside_a_mapping = any(is_mapping(key[: dot.start()]) for dot in re.finditer(r"\.|$", key))
    return f"++{override}" if inside_a_mapping else override


def quoted(text: str) -> str:
    """A text as Hydra's quoted string."""
    escaped = _QUOTE.sub(lambda found: found[0] * 2, text).replace("'", "\\'")
    return f"'{escaped}'"


def _refuse_hydras_own_sweeps(override: str, key: str, value: str) -> None:
    """Raises InputError, with what to write instead, for the grids and sweepers that belong to Hydra's --multirun."""
    if key == "sweep" and "," in value:
        raise InputError(f"{override}: choose one of them, as in +sweep={value.partition(',')[0]}")
    if re.match(r"hydra[/.]sweeper\b", key):
        raise InputError(f"{override}: lrsweep searches by itself; write search=tpe search.n_trials=20")
    if (call := re.fullmatch(r"(choice|interval|range)\((.*)\)", value)) is None:
        return
    axis, (low, *more) = key.removeprefix("space."), call[2].split(",")
    if call[1] == "choice" or not more:
        written = f"[{call[2]}]"
    else:
        step = f", step: {more[1]}" if len(more) > 1 else ", log: true" if call[1] == "interval" else ", step: 1"
        written = f"{{low: {low}, high: {more[0]}{step}}}"
    raise InputError(f"{override}: {call[1]}() is for Hydra's --multirun; write 'space.{axis}={written}'")


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Hydra's config, and the option chosen in each group. Raises InputError."""
    with warnings.catch_warnings():
        # Hydra warns about folders that it does not find.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with initialize_config_dir(str(CONF), version_base="1.3", job_name="lrsweep"):
                config = compose("config", overrides=list(overrides), return_hydra_config=True)
        # The input is the user's: besides Hydra's own errors, its parsers let Python's through.
        except (HydraException, OmegaConfBaseException, *YAML_FAULTS) as fault:
            raise InputError(one_line(fault, CONF, sweep_names(), overrides)) from None
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, choices


# Sweep files


def _chosen_sweep(overrides: Sequence[str]) -> DictConfig | None:
    """The sweep file that the overrides name; None if there is no such file. Raises InputError for a broken one."""
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    names = [value for key, _, value in pairs if key == "sweep"]
    path = sweep_files().get(names[-1]) if names else None
    return None if path is None else read_config(path)


def _ranges_replace_lists(overrides: Sequence[str], sweep: DictConfig) -> list[str]:
    """Removes the sweep file's list of choices where the command line gives a range: Hydra would merge the two."""
    lists = {key for key, value in flatten(_plain(sweep)).items() if isinstance(value, list)}
    found = []
    for override in overrides:
        key, _, value = override.removeprefix("++").partition("=")
        if override.startswith("++space.") and key in lists and value.lstrip().startswith("{"):
            found.append(f"~{key}")
        found.append(override)
    return found


# Options that have no effect


def _refuse_ignored(overrides: Sequence[str], sweep: DictConfig, config: DictConfig) -> None:
    """Raises InputError for a group's option that has no effect, because the sweep file sets all of its keys."""
    by_sweep, own = flatten(_plain(sweep)), flatten(_plain(config))
    by_user = {override.partition("=")[0].lstrip("+") for override in overrides}
    name = next(override for override in reversed(overrides) if override.startswith("+sweep=")).lstrip("+")
    # Of several options of one group, Hydra takes the last.
    chosen = {group: option for group, _, option in (o.partition("=") for o in overrides) if (CONF / group).is_dir()}
    for group, option in chosen.items():
        wanted, default = _option(group, option), _option(group, _default_option(group, sweep))
        changed = {key for key in wanted.keys() | default.keys() if wanted.get(key) != default.get(key)} - by_user
        lost = [key for key in wanted if key in changed and wanted[key] not in ("???", own.get(key))]
        if not lost or changed - by_sweep.keys():
            continue
        key = next((key for key in lost if key.endswith((".mode", ".name", ".quantization"))), lost[0])
        raise InputError(
            f"{group}={option}: {name} sets all of its keys itself, so the option has no effect; set its keys on the "
            f"command line ({key}={wanted[key]}), or remove them from the sweep file"
        )


def _option(group: str, option: str) -> dict[str, Any]:
    """The dotted keys that an option of a group sets; empty if its file is not found."""
    for folder in (CONF, own_conf()):
        path = folder / group / f"{option}.yaml"
        if not path.is_file():
            continue
        try:
            tree = _plain(read_config(path))
        except InputError:
            return {}  # Hydra has composed it; what it holds is validated later
        found: dict[str, Any] = {}
        for entry in tree.pop("defaults", []):
            if isinstance(entry, str) and entry != "_self_":
                found |= _option(group, entry.partition("@")[0])
        prefix = "" if _GLOBAL.search(path.read_text(encoding="utf-8")) else f"{group}."
        return found | {prefix + key: value for key, value in flatten(tree).items()}
    return {}


def _default_option(group: str, sweep: DictConfig) -> str:
    """The option of a group if the command line gave none: the sweep file's, or the base config's."""
    base = _plain(read_config(CONF / "config.yaml"))
    entries = [*base.get("defaults", []), *_plain(sweep).get("defaults", [])]
    found = ""
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, Mapping) else ():
            if re.fullmatch(rf"(override\s+)?/?{re.escape(group)}", str(key)):
                found = str(value)
    return found


def _plain(config: DictConfig) -> dict[str, Any]:
    tree: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return tree


def _refuse_secrets(config: SweepConfig) -> None:
    """Raises InputError for a secret in a key that needs none: the saved config is masked, so it could not be used."""
    for key, value in flatten(config.model_dump()).items():
        if key not in _MAY_BE_SECRET and masked({key: value}) != {key: value}:
            shown = " ".join(str(masked({key: value})[key]).split())[:200]
            raise InputError(
                f"{key}={shown}: holds a secret; a secret in this key is rejected, because the config is saved: remove "
                "it and use an environment variable"
            )

"""The text of `lrsweep --help`, by the template in config.yaml. Hydra's own help takes three seconds for the same."""

from collections.abc import Mapping
from typing import Any

import yaml

from lrsweep.config.config_files import CONF, options


def help_text(config: str) -> str:
    """The commands, the groups with their options, and a config as YAML."""
    shown = _base()["hydra"]["help"]
    groups = "".join(f"{group}: {', '.join(names)}\n" for group, names in options().items())
    text = str(shown["template"]).replace("$APP_CONFIG_GROUPS", groups).replace("$CONFIG", config)
    return text.replace("${hydra.help.header}", shown["header"]).replace("${hydra.help.footer}", shown["footer"]) + "\n"


def default_config() -> str:
    """The base config as its files have it, with their comments: without composing it, which takes a second."""
    parts = []
    for entry in _base()["defaults"]:
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            if (CONF / group).is_dir():
                lines = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
                parts += [f"{group}: # {option}", *(f"  {line}" for line in lines)]
    own = (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(own) if line.startswith("name:"))
    last = next(i for i, line in enumerate(own) if line.startswith("hydra:"))
    return "\n".join([*parts, *own[first:last]])


def _base() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    return found

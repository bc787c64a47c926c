"""The config files that Hydra may read besides the packaged `conf/`: the user's own `./conf`, and all sweep files.

Hydra gets them as a source of its own, so that the working folder's name is in no override, and a file is read only if
it is asked for: `./conf` may belong to another program.
"""

from pathlib import Path
from typing import Any

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrsweep.config import yaml_safety
from lrsweep.config.config_files import CONF, own_conf, sweep_files
from lrsweep.config.hydra_errors import first_line
from lrsweep.errors import InputError


class UserFiles(FileConfigSource):
    """Hydra's source for `./conf`, of which only our groups are seen, and for the group `sweep`."""

    @staticmethod
    def scheme() -> str:
        """The scheme of its search path."""
        return "lrsweep"

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads a file. Raises InputError for a broken one."""
        path = self._file(config_path)
        node = read_config(path)
        if _is_sweep(config_path):
            header: dict[str, str | None] = {"package": "_global_"}
        else:
            header = ConfigSource._get_header_dict(path.read_text(encoding="utf-8")[:512])
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", node, header)

    def is_group(self, config_path: str) -> bool:
        """Returns whether it is a folder of one of our groups."""
        if config_path in ("", "sweep"):
            return True
        return _is_ours(config_path) and (own_conf() / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Returns whether there is such a file."""
        if _is_sweep(config_path):
            return _sweep_name(config_path) in sweep_files()
        return _is_ours(config_path) and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names of the groups, or of a group's options."""
        if config_path == "":
            names = ["sweep", *(path.name for path in CONF.iterdir())]
        elif config_path == "sweep":
            names = [f"{name}.yaml" for name in sweep_files()]
        else:
            names = [path.name for path in (own_conf() / config_path).iterdir()]
        files: list[str] = []
        for name in names:
            self._list_add_result(files, f"{config_path}/{name}" if config_path else name, name, results_filter)
        return sorted(set(files))

    def _file(self, config_path: str) -> Path:
        if _is_sweep(config_path):
            return sweep_files()[_sweep_name(config_path)]
        return own_conf() / str(self._normalize_file_name(config_path))


class UserFilesLast(SearchPathPlugin):
    """Lets Hydra look into the user's files after the packaged ones, and only when it composes our config."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the source."""
        assert isinstance(search_path, ConfigSearchPathImpl)
        if any(entry.path in (str(CONF), f"file://{CONF}") for entry in search_path.get_path()):
            search_path.append("lrsweep", f"{UserFiles.scheme()}://user")


Plugins.instance().register(UserFiles)
Plugins.instance().register(UserFilesLast)


def _is_sweep(config_path: str) -> bool:
    return config_path.startswith("sweep/")


def _sweep_name(config_path: str) -> str:
    # A name may have dots in it.
    return config_path.removeprefix("sweep/").removesuffix(".yaml")


def _is_ours(config_path: str) -> bool:
    return own_conf().resolve() != CONF.resolve() and (CONF / config_path.partition("/")[0]).is_dir()


def read_config(path: Path) -> DictConfig:
    """A config file. Raises InputError, with the line, for one that is broken, too large or no file."""
    if path.exists() and not path.is_file():
        raise InputError(f"{shown(path)}: not a file; a config is a YAML file")
    yaml_safety.check_file(path, shown(path))
    try:
        node: Any = OmegaConf.load(path)
    except OSError as fault:
        raise InputError(f"{shown(path)}: {fault.strerror}") from None
    except (*yaml_safety.YAML_FAULTS, OmegaConfBaseException) as fault:
        raise InputError(f"{shown(path)}: not valid YAML: {first_line(fault)}") from None
    if not isinstance(node, DictConfig):
        raise InputError(f"{shown(path)}: a config file is a mapping of config keys")
    return node


def shown(path: Path) -> str:
    """A path as messages show it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

"""Where config files are: the packaged groups and sweeps, and the user's own. Imports nothing slow."""

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def _packaged(installed: str, checkout: str) -> Path:
    """A folder of configs: inside the wheel, or next to the package in a checkout, where editable installs find it."""
    folder = _PACKAGE / installed
    return folder if folder.is_dir() else _PACKAGE.parent / checkout


CONF = _packaged("_conf", "conf")
SWEEPS = _packaged("_sweeps", "sweeps")


def own_conf() -> Path:
    """The user's own folder of groups, which may not exist."""
    return Path.cwd() / "conf"


def options() -> dict[str, list[str]]:
    """The options of each group, packaged and the user's own, and the sweeps; sorted."""
    ours = {path.name for path in CONF.iterdir() if path.is_dir()}
    found: dict[str, set[str]] = {"sweep": set(sweep_files())}
    for path in (path for folder in (CONF, own_conf()) if folder.is_dir() for path in folder.glob("*/*.yaml")):
        if path.parent.name in ours:
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def sweep_files() -> dict[str, Path]:
    """Every sweep file by its name: the packaged ones, and those in `./sweeps`, which win."""
    folders = [SWEEPS, Path.cwd() / "sweeps"]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}

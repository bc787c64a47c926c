"""The tags of a sweep's run."""

import shutil
import subprocess

from lrsweep.libraries import PACKAGES, version


def tags() -> dict[str, str]:
    """Returns the libraries' versions, and the working folder's git commit if there is one."""
    found = {f"version.{name}": installed for name in PACKAGES if (installed := version(name))}
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    process = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return process.stdout.strip() or None

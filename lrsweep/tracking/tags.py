"""The tags that every run carries."""

import shutil
import subprocess

from lrsweep.libraries import PACKAGES, version


def tags() -> dict[str, str]:
    """The libraries' versions, and the working folder's git commit where there is one."""
    found = {f"version.{name}": installed for name in PACKAGES if (installed := version(name))}
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None

"""`lrsweep completion SHELL`: completes commands, sweeps, groups, keys and their options in bash, zsh and fish.

The shell calls `lrsweep completion --words ...` for the candidates, so a script need not change when lrsweep does.
"""

import argparse
from collections.abc import Sequence

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.files.paths import existing_names

# bash splits words at `=`, so its script takes the line as it was typed, and gives back the part after the last `=`.
_SCRIPTS = {
    "bash": """\
# In ~/.bashrc: source <(lrsweep completion bash)
_lrsweep() {
    local line="${COMP_LINE:0:COMP_POINT}" current prefix=""
    current="${line##* }"
    [[ "$current" == *=* ]] && prefix="${current%=*}="
    # shellcheck disable=SC2086
    COMPREPLY=($(lrsweep completion --words ${line% *} "$current" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
}
complete -o default -F _lrsweep lrsweep
""",
    "zsh": """\
# In ~/.zshrc, after compinit: source <(lrsweep completion zsh)
_lrsweep() {
    local -a found
    found=("${(@f)$(lrsweep completion --words "${(@)words[1,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    compadd -S '' -- "${found[@]}" || _files
}
compdef _lrsweep lrsweep
""",
    "fish": """\
# In ~/.config/fish/config.fish: lrsweep completion fish | source
complete -c lrsweep -a '(lrsweep completion --words (commandline -opc) (commandline -ct) 2>/dev/null)'
""",
}
# Commands whose first argument is the name of a sweep in outputs/.
_ON_SWEEPS = ("export", "report", "sync")


def run(argv: Sequence[str]) -> int:
    """Prints the script for a shell. Raises InputError for an argument."""
    parser = ArgumentParser(
        "completion", "print the completion script for your shell: source <(lrsweep completion bash)"
    )
    parser.add_argument("shell", nargs="?", choices=sorted(_SCRIPTS), metavar="SHELL", help=", ".join(sorted(_SCRIPTS)))
    parser.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.words is not None:
        _, *before, current = arguments.words or ["lrsweep", ""]
        print("\n".join(candidates(before, current)))
        return 0
    if arguments.shell is None:
        parser.error(f"name a shell: {', '.join(sorted(_SCRIPTS))}")
    print(_SCRIPTS[arguments.shell], end="")
    return 0


def candidates(before: Sequence[str], current: str) -> list[str]:
    """What may stand where the cursor is.

    Args:
        before: The words between `lrsweep` and the one that is being typed.
        current: What there is of that one.
    """
    from lrsweep.cli.main import COMMANDS

    if before and before[0] in COMMANDS and before[0] != "find-lr":
        found = _arguments(before)
    else:
        found = [*([] if before else COMMANDS), *_overrides(current)]
    return sorted({word for word in found if word.startswith(current)})


def _arguments(before: Sequence[str]) -> list[str]:
    command, last = before[0], before[-1]
    if last == "--to" or (command == "import" and len(before) == 1):
        from lrsweep.dialects import DIALECTS

        return [name for name in DIALECTS if command == "export" or name != "hydra"]
    if command in _ON_SWEEPS and len(before) == 1:
        return existing_names()
    if command == "help" and len(before) == 1:
        from lrsweep.cli.main import COMMANDS

        return list(COMMANDS)
    if command == "completion":
        return list(_SCRIPTS)
    return ["--to", "--base", "--out"] if command == "export" else []


def _overrides(current: str) -> list[str]:
    from lrsweep.config.config_files import options

    key, equals, _ = current.partition("=")
    groups = options()
    if equals and key.lstrip("+") in groups:
        return [f"{key}={name}" for name in groups[key.lstrip("+")]]
    if key.lstrip("+") == "sweep":
        return [f"{key}="]
    # The schema takes half a second to import.
    from lrsweep.config.schema import key_facts, keys

    if current.startswith("space."):
        return [f"space.{name}=" for name in keys() if key_facts(name).scope == "trial"]
    return ["+sweep=", "space.", *(f"{name}=" for name in (*groups, *keys()) if name not in ("space", "sweep"))]

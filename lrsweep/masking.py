"""Secrets in text: what looks like one becomes *** wherever a config, a message or a log is shown or written."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

# A tokenizer's tokens are none.
_NAME = (
    r"(?:(?!(?:pad|eos|bos|eot|unk|cls|sep|mask|start|end|special|image|per)[_-])[A-Za-z0-9]+[_-])*"
    r"(?:token|password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key)"
)
_VALUE = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s'\"&,;)}\]]+)"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), kept)
    for pattern, kept in (
        # user:password@ in a URL; drivers take a password with / and @ in it, and host:5000/a@b has none.
        (r"(://[^:/@\s'\"]*):(?!\d+/)[^\s'\"]*@", rf"\1:{HIDDEN}@"),
        (r"(://)[^:/@\s'\"]{20,}@", rf"\1{HIDDEN}@"),
        (rf"([?&](?:key|sig|signature|auth|x-amz-[a-z-]+)=)(?!\*){_VALUE}", rf"\1{HIDDEN}"),
        # name=value, --name value, "name": "value", a YAML line. $NAME stands for a secret and is none.
        (rf"((?<![A-Za-z0-9_-])(?:--)?{_NAME}=)(?![$*]){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(--{_NAME}\s+)(?![-$*]){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(['\"]{_NAME}['\"]:\s*['\"])[^'\"\n]*", rf"\1{HIDDEN}"),
        (rf"^(\s*{_NAME}:[ \t]+)(?!null\s*$|~\s*$)\S.*$", rf"\1{HIDDEN}"),
        (r"(authorization\W+(?:(?:bearer|basic|token)\s+)?)(?!bearer|basic|token)[^\s'\"]+", rf"\1{HIDDEN}"),
    )
)
# Tokens that show by their form: Hugging Face, OpenAI, GitHub, GitLab, AWS, Slack, Google, Databricks, JSON web tokens.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]{10,}|AIza[\w-]{30,}|dapi[0-9a-f]{32}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
_KEY = re.compile(rf"{_NAME}\Z", re.IGNORECASE)
_VARIABLE = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|\AMYSQL_PWD)\Z"
)
# A shorter one, of the environment or a URL, would be found in words that have nothing to do with it.
_SHORTEST = 8
_learnt: set[str] = set()


def learn(url: str) -> None:
    """Has `mask` know the password in a database's URL, whatever characters it is made of."""
    # As SQLAlchemy reads it: up to the first @. A server's URL may have a port and an @ further on.
    found = re.match(r"(?!https?:)[\w+.-]+://[^:/]*:([^@]+)@", url)
    if found:
        _learnt.update((found[1], unquote(found[1])))


def mask(text: str) -> str:
    """The text without passwords and tokens, also those that environment variables hold, and what it has learnt."""
    for password in _learnt:
        text = text.replace(f":{password}@", f":{HIDDEN}@")
        if len(password) >= _SHORTEST:
            # As a word: a password may be the beginning of its own URL.
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(password)}(?![A-Za-z0-9])", HIDDEN, text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    for pattern, kept in _PATTERNS:
        text = pattern.sub(kept, text)
    return _SHAPES.sub(HIDDEN, text)


def masked(value: Any) -> Any:
    """A tree of mappings and lists with every text in it masked, and whole what stands under a secret's name."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key, inner) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked(inner) for inner in value)
    return mask(value) if isinstance(value, str) else value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and _KEY.match(str(key)) is not None


class MaskingFormatter(logging.Formatter):
    """A log's lines, tracebacks too, masked."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))

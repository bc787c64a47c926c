"""Replaces secrets by *** in configs, messages and logs that are shown or written."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

# Names that end like a secret's. A tokenizer's tokens (pad_token) and numbers of tokens (max_token) are not secrets.
_WORD = r"[A-Za-z0-9]+[_-]"
_HARMLESS_PREFIX = (
    r"(?:pad|eos|bos|eot|unk|cls|sep|mask|start|end|special|image|per|max|min|num|n|new|total|stop|bad|forced)[_-]"
)
_NAME = (
    rf"(?:(?:(?!{_HARMLESS_PREFIX}){_WORD})*token"
    rf"|(?:{_WORD})*(?:password|passwd|passphrase|secret|(?:api|access|secret|private)[_-]?key))"
)
_VALUE = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s'\"&,;)}\]]+)"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), kept)
    for pattern, kept in (
        # user:password@ in the URL of a database, whose password ends at the first @.
        (r"((?<![\w+.-])(?!https?:)[\w+.-]+://[^:/@\s'\"]*):[^@\s]+@", rf"\1:{HIDDEN}@"),
        # user:password@ in any URL. Drivers accept / and @ in a password; http://host:5000/a@b has no password.
        (r"(://[^:/@\s'\"]*):(?!\d+/)[^\s'\"]*@", rf"\1:{HIDDEN}@"),
        (r"(://)[^:/@\s'\"]{20,}@", rf"\1{HIDDEN}@"),
        (rf"([?&](?:key|sig|signature|auth|x-amz-[a-z-]+)=)(?!\*){_VALUE}", rf"\1{HIDDEN}"),
        # name=value, --name value, "name": "value", a YAML line. $NAME refers to a secret but is not one.
        (rf"((?<![A-Za-z0-9_-])(?:--)?{_NAME}=)(?![$*]){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(--{_NAME}\s+)(?![-$*]){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(['\"]{_NAME}['\"]:\s*['\"])[^'\"\n]*", rf"\1{HIDDEN}"),
        (rf"^(\s*{_NAME}:[ \t]+)(?!null\s*$|~\s*$)\S.*$", rf"\1{HIDDEN}"),
        (r"(authorization\W+(?:(?:bearer|basic|token)\s+)?)(?!bearer|basic|token)[^\s'\"]+", rf"\1{HIDDEN}"),
    )
)
# Tokens of a known form: Hugging Face, OpenAI, GitHub, GitLab, AWS, Slack, Google, Databricks, JSON web tokens.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]{10,}|AIza[\w-]{30,}|dapi[0-9a-f]{32}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
_KEY = re.compile(rf"{_NAME}\Z", re.IGNORECASE)
_VARIABLE = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|\AMYSQL_PWD)\Z"
)
# Shorter secrets, of the environment or of a URL, would also match parts of ordinary words.
_SHORTEST = 8


@dataclass(frozen=True)
class Redactor:
    """Masks secrets in text: those of a known form, those of the environment, and `passwords`.

    Attributes:
        passwords: Known passwords, such as those of a database's URL.
    """

    passwords: frozenset[str] = frozenset()

    @classmethod
    def of_urls(cls, *urls: str | None) -> "Redactor":
        """A redactor that knows the passwords in the URLs of databases, whatever their characters."""
        found: set[str] = set()
        for url in urls:
            # SQLAlchemy reads a password up to the first @. A web server's URL may have a port and a later @.
            match = re.match(r"(?!https?:)[\w+.-]+://[^:/]*:([^@]+)@", url or "")
            if match:
                found |= {match[1], unquote(match[1])}
        return cls(frozenset(found))

    def mask(self, text: str) -> str:
        """The text without passwords and tokens."""
        for password in self.passwords:
            text = text.replace(f":{password}@", f":{HIDDEN}@")
            if len(password) >= _SHORTEST:
                # As a whole word: a password may be the start of its own URL.
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(password)}(?![A-Za-z0-9])", HIDDEN, text)
        for name, value in os.environ.items():
            if len(value) >= _SHORTEST and value in text and _VARIABLE.search(name):
                text = text.replace(value, HIDDEN)
        for pattern, kept in _PATTERNS:
            text = pattern.sub(kept, text)
        return _SHAPES.sub(HIDDEN, text)

    def masked(self, value: Any) -> Any:
        """A tree of mappings and lists with every string masked; the value of a key that names a secret becomes ***."""
        if isinstance(value, Mapping):
            return {key: HIDDEN if _is_secret(key, inner) else self.masked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.masked(inner) for inner in value)
        return self.mask(value) if isinstance(value, str) else value


def mask(text: str) -> str:
    """The text without passwords and tokens, if no passwords are known."""
    return Redactor().mask(text)


def masked(value: Any) -> Any:
    """A tree with its secrets masked, if no passwords are known."""
    return Redactor().masked(value)


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and _KEY.match(str(key)) is not None

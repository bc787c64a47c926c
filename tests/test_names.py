"""Names are the field's: no private words in identifiers or file names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lrsweep

PACKAGE = Path(lrsweep.__file__).parent
PRIVATE = {
    "alone",
    "basin",
    "child",
    "children",
    "choice",
    "claims",
    "crew",
    "go",
    "heard",
    "interop",
    "keeper",
    "levels",
    "lockstep",
    "masking",
    "member",
    "members",
    "mourn",
    "order",
    "passes",
    "presence",
    "said",
    "shared",
    "sibling",
    "siblings",
    "studies",
    "tend",
    "told",
    "verdicts",
    "width",
    "widths",
    "window",
    "words",
}


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: functions, classes, parameters, variables, attributes of its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def parts(name: str) -> set[str]:
    """`_PackedRowOrder` and `packed_row_order` as the words that they are made of."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


def private(path: Path, text: str) -> list[str]:
    names = {path.stem, *defined(ast.parse(text))}
    return sorted(f"{path}: {name}" for name in names if parts(name) & PRIVATE)


def test_no_private_words_in_names() -> None:
    found = [
        line for path in sorted(PACKAGE.rglob("*.py")) for line in private(path.relative_to(PACKAGE), path.read_text())
    ]
    assert found == []


def test_a_private_word_would_be_seen() -> None:
    text = "class CrewMember:\n    pass\ndef f(sibling_runs):\n    self.width = 1\n    linewidth = goes_on = 2\n"
    assert private(Path("a/window.py"), text) == [
        "a/window.py: CrewMember",
        "a/window.py: sibling_runs",
        "a/window.py: width",
        "a/window.py: window",
    ]

"""Text for the embedded base and its task: the sources of the running Python's standard library.

lrsweep ships none of it, but reads it where it is installed. The files differ a little between Python versions, but the
split does not: a module is on the same side in every version, by its name.
"""

import ast
import contextlib
import functools
import gc
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import write_text

# Applications, jokes and generated tables: not installed everywhere, or not typical code and prose.
LEFT_OUT = {"antigravity", "encodings", "idlelib", "lib2to3", "pydoc_data", "this", "turtledemo"}
TEST_FOLDERS = {"idle_test", "test", "tests"}

# Prompts and completions.
Pairs = tuple[tuple[str, str], ...]

# In characters. With these limits, and with a letter or digit first, a completion has the same tokens with its prompt
# and without, and every row fits into 128 tokens of the base's tokenizer.
SHORTEST_COMPLETION, LONGEST_COMPLETION, LONGEST_PROMPT = 16, 100, 200


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The train rows and the eval rows, by module and line, each prompt once.

    A row is a mapping. Its `prompt` is `module.function(args)`, a newline and three quotation marks; its `completion`
    is the first line of the function's docstring. The two sides have no package in common, and no eval completion is a
    line of any text on the train side.

    Raises:
        InputError: Python is installed without its sources.
    """
    train, evaluation = _split_pairs()
    if not train or not evaluation:
        raise InputError("data.path='embedded': this Python has no standard library sources; set data.path to a file")
    return _as_rows(train), _as_rows(evaluation)


def pretraining_texts() -> list[str]:
    """The sources of the modules on the train side, by module."""
    return [text for module, text in _sources() if not is_evaluated(module)]


def held_out_texts() -> list[str]:
    """The sources of the modules on the eval side, by module."""
    return [text for module, text in _sources() if is_evaluated(module)]


def is_evaluated(module: str) -> bool:
    """Whether a module is on the eval side: one package in five is, by a hash of its name.

    A package stays whole, and `_pydatetime` is on the side of `datetime`: code that moves between the files of a
    package from one Python version to the next never crosses the split.

    Args:
        module: The module's dotted path.
    """
    package = re.sub(r"^_(py_?)?", "", module.split(".")[0])
    return int(hashlib.sha256(package.encode()).hexdigest(), 16) % 5 == 0


def _sources() -> Iterator[tuple[str, str]]:
    """The dotted module path and the text of each file that is UTF-8, by module."""
    for file, path in _files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield ".".join(path).removesuffix(".__init__"), text


def _files() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The files of the standard library, each with its module's path, by module."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        for file in [stdlib / f"{name}.py", *sorted((stdlib / name).rglob("*.py"))]:
            path = file.relative_to(stdlib).with_suffix("").parts
            if not TEST_FOLDERS.intersection(path) and file.is_file():
                yield file, path


# Cached for the life of the process, because a sweep reads its data for every trial.
@functools.cache
def _split_pairs() -> tuple[Pairs, Pairs]:
    """The pairs (prompt, completion) of the train side and of the eval side.

    Parsing the library takes three seconds, so the pairs are kept in the user's cache, for the same files only.
    """
    cache = platformdirs.user_cache_path("lrsweep") / f"docstrings-{_fingerprint()}.json"
    try:
        train, evaluation = json.loads(cache.read_text(encoding="utf-8"))
        return _as_pairs(train), _as_pairs(evaluation)
    except (OSError, ValueError, TypeError):
        pass  # not there yet, or damaged
    found = _parsed()
    # Without a place for it, the next process parses again; without a home, the path is a relative one.
    if cache.is_absolute():
        with contextlib.suppress(StorageError):
            write_text(cache, json.dumps(found))
    return found


def _as_pairs(tree: list[list[str]]) -> Pairs:
    return tuple((str(prompt), str(completion)) for prompt, completion in tree)


def _fingerprint() -> str:
    """A hash of all that the pairs depend on: the library's files, by size and time, and this module."""
    known = hashlib.sha256(Path(__file__).read_bytes())
    for file, _ in _files():
        stat = file.stat()
        known.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return known.hexdigest()[:16]


def _parsed() -> tuple[Pairs, Pairs]:
    train: dict[str, str] = {}
    evaluation: dict[str, str] = {}
    train_lines: set[str] = set()
    with _collector_paused():
        for module, text in _sources():
            side = evaluation if is_evaluated(module) else train
            for signature, docstring in _documented(text):
                prompt, completion = f'{module}.{signature}\n"""', docstring.splitlines()[0].strip()
                if (
                    len(prompt) <= LONGEST_PROMPT
                    and SHORTEST_COMPLETION <= len(completion) <= LONGEST_COMPLETION
                    and completion[0].isalnum()
                ):
                    side.setdefault(prompt, completion)
            if side is train:
                train_lines.update(line.strip(" \t\"'") for line in text.splitlines())
    train_lines.update(train.values())
    return tuple(train.items()), tuple(pair for pair in evaluation.items() if pair[1] not in train_lines)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses the garbage collector: syntax trees have no cycles, and with torch loaded it takes longer than parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _documented(text: str) -> Iterator[tuple[str, str]]:
    """The signature `Class.function(arguments)` and docstring of a module's functions and methods, by line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file may have an escape that this Python warns about
            module = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    yield from _documented_in(module.body, "")


def _documented_in(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _documented_in(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield f"{prefix}{node.name}({ast.unparse(node.args)})", docstring
        elif isinstance(node, ast.If | ast.Try):
            yield from _documented_in(node.body + node.orelse, prefix)


def _as_rows(pairs: Pairs) -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]

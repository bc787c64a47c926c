"""The embedded rows are parsed once for a user, and again when the library changes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrsweep.embedded import corpus


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a user with a small standard library."""
    library = tmp_path / "lib"
    (library / "json").mkdir(parents=True)
    for name, module in (("argparse.py", "argparse"), ("json/__init__.py", "json"), ("bisect.py", "bisect")):
        (library / name).write_text(f'def read():\n    """Reads what {module} is able to read."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(library))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus._split_pairs.cache_clear()
    yield tmp_path / "cache" / "lrsweep"
    corpus._split_pairs.cache_clear()


def parsed_anew(monkeypatch: pytest.MonkeyPatch) -> tuple[object, int]:
    """The pairs as a new process gets them, and how often it parsed."""
    calls = 0
    parse = corpus._parsed

    def counted() -> tuple[corpus.Pairs, corpus.Pairs]:
        nonlocal calls
        calls += 1
        return parse()

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_parsed", counted)
        corpus._split_pairs.cache_clear()
        return corpus._split_pairs(), calls


def test_the_second_process_reads_what_the_first_has_parsed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = parsed_anew(monkeypatch)
    assert first[1] == 1
    assert sum(map(len, corpus._split_pairs())) == 3
    assert parsed_anew(monkeypatch) == (first[0], 0)


def test_a_changed_library_is_parsed_again(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed_anew(monkeypatch)
    changed = tmp_path / "lib" / "bisect.py"
    changed.write_text(changed.read_text().replace("Reads", "Sorts"))
    found, calls = parsed_anew(monkeypatch)
    assert calls == 1
    assert "Sorts what bisect is able to read." in str(found)


@pytest.mark.parametrize("damage", [b"", b"[[], 3]", b'{"a": 1}', b"\xff\xfe", b"[[[1]], []]"])
def test_a_damaged_file_is_parsed_again_and_mended(damage: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parsed_anew(monkeypatch)[0]
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert parsed_anew(monkeypatch) == (whole, 1)
    assert parsed_anew(monkeypatch) == (whole, 0)


def test_without_a_place_for_it_the_rows_are_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parsed_anew(monkeypatch)[0]
    cache.rename(cache.with_name("gone"))
    cache.write_text("a file where the folder should be")
    assert parsed_anew(monkeypatch) == (whole, 1)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert parsed_anew(monkeypatch) == (whole, 1)

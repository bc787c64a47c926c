"""A PostgreSQL for the tests of this folder that need one."""

from collections.abc import Iterator

import pytest

from tests.orchestration.executors import postgres


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a database in a real PostgreSQL, with its default settings."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'lrsweep[postgresql]'")
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    with postgres.server() as url:
        yield url


@pytest.fixture
def database(postgresql: str) -> Iterator[str]:
    """The same, empty."""
    yield postgresql
    postgres.empty(postgresql)

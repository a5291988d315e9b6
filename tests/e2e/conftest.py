"""A house a test."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.house import House
from tests.e2e.real_engine import real_engine

__all__ = ["real_engine"]


@pytest.fixture
def house() -> Iterator[House]:
    """Under a short path: the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="llms-") as root:
        yield House(Path(root))


@pytest.fixture
async def web(house: House) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the house's front door."""
    async with aiohttp.ClientSession(house.url) as session:
        yield session

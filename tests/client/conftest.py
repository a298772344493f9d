"""Clients of the server in this process."""

from collections.abc import AsyncIterator

import pytest
import seqloom
from serving import Served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[seqloom.AsyncClient]:
    """An asynchronous client of `served`."""
    async with seqloom.AsyncClient(served.address, timeout=30) as one:
        yield one

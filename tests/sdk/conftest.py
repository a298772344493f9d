"""Clients of the server in this process."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import seqloom

if TYPE_CHECKING:  # it makes a model as it is imported, in the precision that is not set yet
    from helpers.real_server import Served


@pytest.fixture
async def client(served: "Served") -> AsyncIterator[seqloom.AsyncClient]:
    """An asynchronous client of `served`."""
    async with seqloom.AsyncClient(served.address, timeout=30) as one:
        yield one

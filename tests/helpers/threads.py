"""Blocking calls on threads, while the event loop of the test goes on, which has the server."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any


async def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Returns function(item) of each, all at once, each on a thread of its own."""
    items = list(items)
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(len(items)) as pool:
        return await asyncio.gather(*(loop.run_in_executor(pool, function, item) for item in items))

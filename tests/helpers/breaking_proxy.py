"""A TCP relay in front of a server: the network that a test can hold up, slow down, or cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Relays to `target`, HOST:PORT. connections: made so far.

    While `open` is not set, nothing comes back from it; while `reading` is not, nothing is taken that goes there.
    cut_after: bytes that clients may still send before their connection breaks, once; None for no such bound. delay:
    seconds that everything is on its way, in both directions.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.connections = 0
        self.cut_after: int | None = None
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.reading = asyncio.Event()
        self.reading.set()
        self._refuses = False
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()

    def refuse(self) -> None:
        """Breaks every connection, and each that comes later as soon as it is made."""
        self._refuses = True
        self.cut()

    def cut(self) -> None:
        """Breaks every connection; what comes later is relayed again."""
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        self.connections += 1
        there, onward = await asyncio.open_connection(*self._target.split(":"))
        self._writers |= {writer, onward}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(reader, onward, hold=False), self._pump(there, writer, hold=True))
        for each in (writer, onward):
            each.transport.abort()
            self._writers.discard(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, hold: bool) -> None:
        while data := await reader.read(1 << 16):
            await (self.open if hold else self.reading).wait()
            if not hold and self.cut_after is not None:
                data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
            if self.delay:
                asyncio.get_running_loop().call_later(self.delay, writer.write, data)
                continue
            writer.write(data)
            await writer.drain()
            if not hold and self.cut_after is not None and self.cut_after < 0:
                self.cut_after = None
                break
        writer.transport.abort()


@contextlib.asynccontextmanager
async def proxy_of(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy._relay, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.open.set()
        proxy.reading.set()
        proxy.cut()
        await server.wait_closed()

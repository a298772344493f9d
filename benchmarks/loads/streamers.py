"""Streams that speak in real time to a server, in a process of their own, since one cannot feed thousands.

Started with an address and a model, asked [streams, seconds], it answers with the round's numbers, as
stream_load.real_time has them.
"""

import sys

import seqloom

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Loop
from benchmarks.loads import stream_load
from benchmarks.loads.workload import chunks, synthetic

CHUNK = 10  # frames


async def _client(address: str) -> seqloom.AsyncClient:
    return seqloom.AsyncClient(address)


def main() -> None:
    address, model = sys.argv[1:]
    spoken = chunks(synthetic(), CHUNK)
    with Loop() as loop:
        client = loop.run(_client(address))
        say("ready")
        for count, seconds in questions():
            say(loop.run(stream_load.real_time(client, model, spoken, count, seconds)))
        loop.run(client.close())


if __name__ == "__main__":
    main()

"""The program of test_forks.py: a process that has clients, and what its forks can do with them; tells in JSON.

forked.py used ADDRESS: all that there is of clients, in forks of a process that uses them. forked.py first ADDRESS:
forks of one that has no client yet.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time

import numpy as np
import seqloom

FORK = multiprocessing.get_context("fork")
LIMIT = 60  # seconds for a child; a call that waits for its own timeout takes longer
TIMEOUT = 600
X = np.zeros((3, 5))
FRAMES = np.zeros((2, 4, 5))  # of two streams


def in_child(action):
    """What action() returns in a fork, or how that ended."""
    answers = FORK.SimpleQueue()

    def run():
        try:
            answers.put(action())
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    child = FORK.Process(target=run)
    child.start()
    child.join(LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        return "hung"
    return f"exit {child.exitcode}" if child.exitcode or answers.empty() else answers.get()


def refusal(action, awaited):
    """The reason with which a call is refused."""
    try:
        asyncio.run(result_of(action)) if awaited else action()
    except seqloom.InvalidArgument as error:
        return error.reason if "spawn" in str(error) else str(error)
    return "done"


async def result_of(action):
    result = action()
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return await result


def used(address):
    loop = asyncio.new_event_loop()
    ours = seqloom.AsyncClient(address, timeout=TIMEOUT)
    blocking = seqloom.Client(address, timeout=TIMEOUT)

    async def begin():
        stream = await ours.stream("small").__aenter__()
        await stream.send(X)
        group = await ours.stream_group("small", 2).__aenter__()
        await group.send(FRAMES)
        run = await ours.create_run("small", optimizer=seqloom.SGD(lr=0.1))
        await run.forward_backward([X], [[0, 1, 2]])
        await run.step()  # which the server could lose: it is kept here
        return stream, group, run

    stream, group, run = loop.run_until_complete(begin())
    blocking_stream = blocking.stream("small").__enter__()
    blocking_stream.send(X)
    blocking_group = blocking.stream_group("small", 2).__enter__()
    blocking_run = blocking.create_run("small", optimizer=seqloom.SGD(lr=0.1))
    blocking_run.forward_backward([X], [[0, 1, 2]]).result()
    blocking_run.step()

    asynchronous = {
        "a new client": lambda: seqloom.AsyncClient(address).models(),
        "models": lambda: ours.models(),
        "infer": lambda: ours.infer("small", [X]),
        "gradients": lambda: ours.gradients("small", [X], [[0, 1, 2]]),
        "a new stream": lambda: ours.stream("small").__aenter__(),
        "a new run": lambda: ours.create_run("small", optimizer=seqloom.SGD(lr=0.1)),
        "export": lambda: ours.export_model("small", "/nowhere"),
        "send": lambda: stream.send(X),
        "receive": lambda: stream.receive(),
        "reset": lambda: stream.reset(),
        "finish": lambda: stream.finish(),
        "stream.run": lambda: stream.run([X]),
        "iteration": lambda: aiter(stream),
        "window": lambda: stream.window,
        "a new group": lambda: ours.stream_group("small", 2).__aenter__(),
        "group.step": lambda: group.step(FRAMES),
        "group.send": lambda: group.send(FRAMES),
        "group.receive": lambda: group.receive(),
        "group.run": lambda: group.run([FRAMES]),
        "group.reset": lambda: group.reset(),
        "group.state": lambda: group.state([1]),
        "group.set_state": lambda: group.set_state(seqloom.State(np.zeros((1, 2, 7)))),
        "group.finish": lambda: group.finish(),
        "group.count": lambda: group.count,
        "forward_backward": lambda: run.forward_backward([X], [[0, 1, 2]]),
        "step": lambda: run.step(),
        "save": lambda: run.save(),
        "info": lambda: run.info(),
        "delete": lambda: run.delete(),
        "end of the group": lambda: group.__aexit__(None, None, None),
        "end of the stream": lambda: stream.__aexit__(None, None, None),
        "end of the run": lambda: run.__aexit__(None, None, None),
        "end of the run after an error": lambda: run.__aexit__(ValueError, ValueError(), None),
        "close of the run": lambda: run.close(),
        "end of the client": lambda: ours.__aexit__(None, None, None),
        "close": lambda: ours.close(),
    }
    blocked = {
        "blocking: a new client": lambda: seqloom.Client(address).models(),
        "blocking: models": lambda: blocking.models(),
        "blocking: infer": lambda: blocking.infer("small", [X]),
        "blocking: a new stream": lambda: blocking.stream("small").__enter__(),
        "blocking: a new run": lambda: blocking.create_run("small", optimizer=seqloom.SGD(lr=0.1)),
        "blocking: send": lambda: blocking_stream.send(X),
        "blocking: receive": lambda: blocking_stream.receive(),
        "blocking: stream.run": lambda: list(blocking_stream.run([X])),
        "blocking: iteration": lambda: list(blocking_stream),
        "blocking: a new group": lambda: blocking.stream_group("small", 2).__enter__(),
        "blocking: group.step": lambda: blocking_group.step(FRAMES),
        "blocking: group.run": lambda: list(blocking_group.run([FRAMES])),
        "blocking: end of the group": lambda: blocking_group.__exit__(None, None, None),
        "blocking: forward_backward": lambda: blocking_run.forward_backward([X], [[0, 1, 2]]),
        "blocking: step": lambda: blocking_run.step(),
        "blocking: end of the stream": lambda: blocking_stream.__exit__(None, None, None),
        "blocking: end of the run": lambda: blocking_run.__exit__(None, None, None),
        "blocking: end of the client": lambda: blocking.__exit__(None, None, None),
        "blocking: close": lambda: blocking.close(),
    }
    calls = {**dict.fromkeys(asynchronous, True), **dict.fromkeys(blocked, False)}
    actions = asynchronous | blocked

    def all_calls():
        threads = len(os.listdir("/proc/self/task"))
        return {"threads": threads, **{name: refusal(actions[name], awaited) for name, awaited in calls.items()}}

    ended = threading.Event()

    def go_on():  # so that forks come at any moment of a call
        while not ended.is_set():
            blocking.infer("small", [X])

    others = [threading.Thread(target=go_on) for _ in range(4)]
    for other in others:
        other.start()
    told = {"children": [in_child(all_calls) for _ in range(8)]}
    told["exits"] = [ended_child() for _ in range(8)]
    ended.set()
    for other in others:
        other.join()

    async def still():
        await run.forward_backward([X], [[0, 1, 2]])
        await run.step()
        assert (await group.receive()).outputs.shape == blocking_group.step(FRAMES).outputs.shape == (2, 4, 3)
        got = [len(await stream.receive()), len((await ours.infer("small", [X])).outputs), (await run.info()).step]
        await run.close()
        await ours.close()
        return got

    told["parent"] = [*loop.run_until_complete(still()), len(blocking_stream.receive())]
    blocking.close()
    return told


def ended_child():
    """The exit status of a fork that leaves as a process does, with everything that it has inherited."""
    pid = os.fork()
    if not pid:
        sys.exit(0)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"


def first(address):
    def use():
        async def infer():
            async with seqloom.AsyncClient(address, timeout=TIMEOUT) as client:
                return (await client.infer("small", [X])).outputs[0].shape

        with seqloom.Client(address, timeout=TIMEOUT) as client, client.stream("small") as stream:
            return [asyncio.run(infer()), [len(chunk) for chunk in stream.run([X, X])]]

    unused = seqloom.AsyncClient(address)  # has no connection
    told = {"children": [in_child(use) for _ in range(3)]}
    told["unused"] = in_child(lambda: asyncio.run(unused.models()) and "used")
    told["parent"] = use()
    told["late"] = in_child(use)
    return told


if __name__ == "__main__":
    result = {"used": used, "first": first}[sys.argv[1]](sys.argv[2])
    print(json.dumps(result), flush=True)

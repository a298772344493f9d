"""Runs the demo: many callers stream speech at once to one batched network, and each gets its outputs step by step.

It starts its own server, trains a model on it, and publishes it. Without --data the model is trained on the Mandarin
digits that ship with the project, and the callers stream voices that are not in the training set. With --data DIR it is
trained on the WAV files of DIR, named {digit}_{speaker}_{index}.wav, of any sample rate; the callers stream those with
index 0 to 4, which are not in the training set.
"""

import argparse
import asyncio
import pathlib
import random
import signal
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import seqloom
from callers import FRAME, Said, call
from features import BINS
from own_server import OwnServer, own_server
from picture import draw
from recordings import Corpus, Recording, folder, shipped
from reporting import LiveLine, Progress, print_agreement, print_numbers, print_recognised
from training import train
from variation import repeated, varied

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "digits"
BATCH = 32
EPOCHS = 8  # over a folder of recordings


def main() -> int:
    """Runs the demo; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR", help="a folder of WAV files to train on and to say")
    parser.add_argument("--callers", type=int, default=16, metavar="N", help="how many speak at once (16)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="for how long each speaks (4)")
    parser.add_argument("--steps", type=int, metavar="N", help="of training, instead of as many as it takes")
    parser.add_argument("--models", type=pathlib.Path, metavar="DIR", help="keeps the model in a folder that has none")
    parser.add_argument("--picture", type=pathlib.Path, metavar="PNG")
    options = parser.parse_args()
    if options.callers < 1 or options.seconds <= 0 or (options.steps is not None and options.steps < 1):
        parser.error("--callers, --seconds and --steps must be above 0")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # the server ends with the demo
    sys.stdout.reconfigure(errors="replace")  # bars, where the terminal has none
    try:
        corpus = folder(options.data) if options.data else shipped()
        with tempfile.TemporaryDirectory() as models:
            recordings = corpus.held_out
            if options.data:  # whose names are sorted by digit
                random.Random(0).shuffle(recordings)
            queues = turns(recordings, options.callers, options.seconds)
            with own_server(options.models or pathlib.Path(models)) as server:
                asyncio.run(learn(server.address, corpus, options.data, options.steps))
                calls = asyncio.run(speak(server, corpus, queues))
    except (seqloom.SeqloomError, ValueError, RuntimeError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    title = f"One of {len(calls)} callers: what was said, and what the network made of it"
    picture = options.picture or ROOT / "build" / ("demo-data.png" if options.data else "demo.png")
    draw(picture, calls[0], corpus.classes, title)
    print(f"Caller 1, waveform and posteriorgram: {picture}")
    return 0


async def learn(address: str, corpus: Corpus, data: pathlib.Path | None, steps: int | None = None) -> None:
    """Creates the model on the server, trains it there, and publishes it."""
    recordings, random = corpus.training, np.random.default_rng(0)
    if data is None:
        batches, hidden_size, rate, steps = varied(corpus, BATCH, random), 80, 1.5e-2, steps or 220
    else:
        batches, hidden_size, rate = repeated(recordings, BATCH, random), 64, 1e-2
        steps = steps or EPOCHS * -(-len(recordings) // BATCH)
    speakers = {recording.speaker for recording in recordings}
    where = f" in {data}" if data else ", varied as if many more had spoken"
    print(f"Training a GRU on {len(recordings)} recordings of {len(speakers)} speakers{where}:", flush=True)
    spec = seqloom.ModelSpec(cell="gru", input_size=BINS, hidden_size=hidden_size, output_size=len(corpus.classes))
    async with seqloom.AsyncClient(address) as client:
        await client.create_model(MODEL, spec, seed=0)
        report = Progress(steps).show
        version = await train(client, MODEL, batches, steps=steps, learning_rate=rate, report=report)
    print(f"Published as version {version} of {MODEL}.")


def turns(recordings: Sequence[Recording], callers: int, seconds: float) -> list[list[Recording]]:
    """Returns the recordings of each caller, at least `seconds` long; if possible, each starts with another one."""
    queues = []
    for caller in range(callers):
        queue: list[Recording] = []
        while sum(FRAME * len(recording.labels) for recording in queue) < seconds:
            queue.append(recordings[(caller + (callers + 1) * len(queue)) % len(recordings)])
        queues.append(queue)
    return queues


async def speak(server: OwnServer, corpus: Corpus, queues: list[list[Recording]]) -> list[list[Said]]:
    """Runs all callers at once; prints the first caller's outputs as they arrive, then the words and the metrics."""
    print(f"The server listens on {server.address}, its metrics are at {server.metrics_url}.")
    print(
        f"{len(queues)} callers speak in 10 ms frames. Caller 1, the likeliest class of each step and how likely it is:"
    )
    loop, line = asyncio.get_running_loop(), LiveLine(corpus.classes)
    before, begin = server.metrics(), loop.time() + 0.2  # all have connected by then
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(call(server.address, MODEL, queue, begin, None if i else line.show))
            for i, queue in enumerate(queues)
        ]
    calls = [task.result() for task in tasks]
    seconds = loop.time() - begin
    print("\n\nHeard from all, a recording between two bars:")
    print_recognised(calls, corpus.classes)
    print_agreement(calls)
    print("\nThe server's own numbers, from /metrics:")
    delays = np.concatenate([one.delays for said in calls for one in said])
    print_numbers(before, server.metrics(), seconds, len(calls), delays)
    return calls


if __name__ == "__main__":
    sys.exit(main())

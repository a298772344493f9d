"""The demo: many callers speak at once, one batched network hears them all, each gets its own outputs, step by step.

It starts a server of its own. Without --data the callers say the Mandarin digits that ship with the project, in voices
that the model has not heard. With --data DIR a model is first trained on the WAV files of DIR, named
{digit}_{speaker}_{index}.wav, of any sample rate; the callers say those with index 0 to 4, kept from training.
"""

import argparse
import asyncio
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence

from callers import FRAME, Said, call
from features import log_mel
from own_server import OwnServer, own_server
from picture import draw
from recordings import Corpus, Recording, folder, shipped
from reporting import LiveLine, print_agreement, print_numbers, print_recognised

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "digits"


def main() -> int:
    """Runs the demo; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR", help="a folder of WAV files to train on and to say")
    parser.add_argument("--callers", type=int, default=16, metavar="N", help="how many speak at once (16)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="for how long each speaks (4)")
    parser.add_argument("--picture", type=pathlib.Path, metavar="PNG")
    options = parser.parse_args()
    if options.callers < 1 or options.seconds <= 0:
        parser.error("--callers and --seconds must be above 0")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # the server ends with the demo
    sys.stdout.reconfigure(errors="replace")  # bars, where the terminal has none
    try:
        with tempfile.TemporaryDirectory() as models:
            corpus = prepare(pathlib.Path(models), options.data)
            recordings = corpus.held_out
            if options.data:  # whose names are sorted by digit
                random.Random(0).shuffle(recordings)
            queues = turns(recordings, options.callers, options.seconds)
            with own_server(pathlib.Path(models)) as server:
                calls = asyncio.run(speak(server, corpus, queues))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    title = f"One of {len(calls)} callers: what was said, and what the network made of it"
    picture = options.picture or ROOT / "build" / ("demo-data.png" if options.data else "demo.png")
    draw(picture, calls[0], corpus.classes, title)
    print(f"Caller 1, waveform and posteriorgram: {picture}")
    return 0


def prepare(models: pathlib.Path, data: pathlib.Path | None) -> Corpus:
    """Puts a model for what will be said into the folder `models`: the shipped one, or one trained on `data`."""
    if data is None:
        shutil.copytree(ROOT / "examples" / "models", models, dirs_exist_ok=True)
        return shipped()
    # torch takes seconds to import, which the shipped model has no need of here
    from seqloom_server.nn import storage
    from training import train

    corpus = folder(data)
    recordings = corpus.training
    speakers = {recording.speaker for recording in recordings}
    print(f"Training a GRU on {len(recordings)} recordings of {len(speakers)} speakers in {data}:")
    network = train(
        [log_mel(recording.samples, recording.rate) for recording in recordings],
        [recording.labels for recording in recordings],
        len(corpus.classes),
        hidden_size=64,
        epochs=8,
        learning_rate=1e-2,
        noise=0.3,
        report=lambda epoch, loss: print(f"  epoch {epoch + 1}: loss {loss:.3f} a frame", flush=True),
    )
    storage.save(models / MODEL, network)
    return corpus


def turns(recordings: Sequence[Recording], callers: int, seconds: float) -> list[list[Recording]]:
    """Returns what each caller says, at least `seconds` long; as far as there are enough, all begin with another."""
    queues = []
    for caller in range(callers):
        queue: list[Recording] = []
        while sum(FRAME * len(recording.labels) for recording in queue) < seconds:
            queue.append(recordings[(caller + (callers + 1) * len(queue)) % len(recordings)])
        queues.append(queue)
    return queues


async def speak(server: OwnServer, corpus: Corpus, queues: list[list[Recording]]) -> list[list[Said]]:
    """Lets all callers speak at once, shows the first one's outputs as they arrive, then everything else in numbers."""
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
    print_numbers(before, server.metrics(), seconds, calls)
    return calls


if __name__ == "__main__":
    sys.exit(main())

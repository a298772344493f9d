"""Training through the service learns to remember; progress is a bar on a terminal and a few lines elsewhere."""

import itertools
import sys

import numpy as np
import seqloom
from reporting import Progress
from training import train


async def test_a_network_is_trained_and_published_and_its_run_is_gone(server_process, tmp_path):
    random = np.random.default_rng(0)

    def examples(count):
        """Only the first step tells a sequence's label."""
        for label in random.integers(0, 2, count):
            x = random.normal(0, 0.3, (random.integers(5, 12), 3)).astype(np.float32)
            x[0] += 2 * label - 1
            yield x, np.full(len(x), label)

    batches = (list(examples(16)) for _ in itertools.count())
    losses = []
    started = server_process("--models", tmp_path / "models")
    async with seqloom.AsyncClient(started.address) as client:
        await client.create_model("kinds", seqloom.ModelSpec(cell="gru", input_size=3, hidden_size=12, output_size=2))
        report = lambda step, loss: losses.append((step, loss))  # noqa: E731
        version = await train(client, "kinds", batches, steps=150, learning_rate=3e-2, report=report)
        assert version == (await client.model("kinds")).weights_version == 2
        assert await client.runs() == []
        heard = list(examples(50))
        found = await client.infer("kinds", [x for x, _ in heard], outputs="labels")
    assert [step for step, _ in losses] == list(range(1, 151))
    assert losses[-1][1] < 0.1 < losses[0][1]
    assert [labels[-1] for labels in found.outputs] == [y[-1] for _, y in heard]


def test_a_terminal_has_one_line_that_fills(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    progress = Progress(4)
    for step in range(1, 5):
        progress.show(step, 1 / step)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    bars = [line.count("█") for line in shown.split("\r")[1:]]
    assert bars == [10, 20, 30, 40]
    assert shown.endswith("100 %, step 4 of 4, loss 0.250 a frame\n")

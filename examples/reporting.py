"""Prints the examples' output: training progress, outputs and delays as they come, recognized words, metrics."""

import itertools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from callers import FRAME, Said
from recognition import edits, recognise

_BARS = "▁▂▃▄▅▆▇█"

_WIDTH = 40  # of the progress bar
_LINES = 5  # where there is no terminal
_TERMINAL = 78  # columns of a line that is written again and again


class Progress:
    """Shows the progress of `total` steps: a bar on a terminal, else a line from time to time."""

    def __init__(self, total: int) -> None:
        self._total = total

    def show(self, step: int, loss: float) -> None:
        """Shows a finished step. step: its number, from 1. loss: per frame."""
        text = f"{100 * step // self._total:3} %, step {step} of {self._total}, loss {loss:.3f} a frame"
        if sys.stdout.isatty():
            bar = "█" * (_WIDTH * step // self._total)
            sys.stdout.write(f"\r  {bar:·<{_WIDTH}} {text}" + ("\n" if step == self._total else ""))
            sys.stdout.flush()
        elif _LINES * step // self._total > _LINES * (step - 1) // self._total:
            print(f"  {text}", flush=True)


class LiveLine:
    """Prints a stream's steps as they arrive: a line for each run of one class, with a bar for each step."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._width = max(map(len, classes))
        self._step = 0
        self._likeliest = -1

    def show(self, probs: np.ndarray) -> None:
        """Shows the next step. probs: [classes]; the height of the bar is the largest."""
        if (likeliest := int(probs.argmax())) != self._likeliest:
            name = self._classes[likeliest]
            sys.stdout.write("\n" if self._step else "")
            sys.stdout.write(f"  {self._step * FRAME:5.2f} s  {name:{self._width}}  ")
            self._likeliest = likeliest
        sys.stdout.write(_BARS[min(int(probs[likeliest] * len(_BARS)), len(_BARS) - 1)])
        sys.stdout.flush()
        self._step += 1


class DelayLine:
    """Shows the delays of live outputs as they come: one line on a terminal, else a line every second.

    tick: seconds from one output to the next; one that comes later than that is counted as missed.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._shown = 0.0

    def show(self, now: float, delays: Sequence[float], told: str) -> None:
        """Shows how things stand. now: seconds since the beginning. delays: in seconds, all so far."""
        every = 0.25 if sys.stdout.isatty() else 1.0
        if now - self._shown >= every:
            self._shown = now
            self._write(f"  {now:5.1f} s  {told}  {self._told(delays[-round(1 / self._tick) :])}")

    def end(self, delays: Sequence[float]) -> None:
        """Shows all of them."""
        self._write(f"  all {len(delays):,} ticks: {self._told(delays)}" if delays else "  nobody spoke")
        if sys.stdout.isatty():
            print()

    def _told(self, delays: Sequence[float]) -> str:
        median, slow = 1000 * np.percentile(delays, [50, 99])
        missed = sum(delay > self._tick for delay in delays)
        return f"p50 {median:.1f} ms, p99 {slow:.1f} ms, missed {missed}"

    @staticmethod
    def _write(text: str) -> None:
        """Over the line before, on a terminal."""
        if sys.stdout.isatty():
            sys.stdout.write(f"\r{text:<{_TERMINAL}}")
            sys.stdout.flush()
        else:
            print(text, flush=True)


def print_right(said: Sequence[Said], classes: Sequence[str]) -> None:
    """Prints how many words of recordings were recognized."""
    words = sum(len(one.recording.words) for one in said)
    wrong = sum(edits(one.recording.words, recognise(one.probs, classes)) for one in said)
    print(f"{words - wrong} of {words} words right, in {len(said)} recordings that were heard from beginning to end.")


def print_recognised(calls: Sequence[Sequence[Said]], classes: Sequence[str]) -> None:
    """Prints the recognized words of every caller, and the spoken words if they differ."""
    words = wrong = 0
    for caller, said in enumerate(calls, 1):
        heard = []
        for one in said:
            found = recognise(one.probs, classes)
            errors = edits(one.recording.words, found)
            correction = f" (said: {' '.join(one.recording.words)})" if errors else ""
            heard.append(f"{' '.join(found) or '-'}{correction}")
            words += len(one.recording.words)
            wrong += errors
        print(f"  caller {caller:2}  {' | '.join(heard)}")
    print(f"{words - wrong} of {words} words right, in recordings that the model was not trained on.")


def print_agreement(calls: Sequence[Sequence[Said]]) -> None:
    """Prints the largest difference of several callers' outputs for the same recording, in different batches."""
    by_name = sorted((one for said in calls for one in said), key=lambda one: one.recording.name)
    alike = [list(group) for _, group in itertools.groupby(by_name, key=lambda one: one.recording.name)]
    repeated = [group for group in alike if len(group) > 1]
    if repeated:
        apart = max(float(np.abs(one.probs - group[0].probs).max()) for group in repeated for one in group)
        print(
            f"{len(repeated)} recordings were said by several callers, among other neighbours in the batch: "
            f"their probabilities differ by {apart:.0e} at most."
        )


def print_numbers(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float, callers: int, delays: np.ndarray
) -> None:
    """Prints the server's metrics over the `seconds` between two readings, and the delays that the callers measured, in
    seconds."""
    grown = Counter(after)
    grown.subtract(before)
    steps, padded = grown["seqloom_steps_total"], grown["seqloom_padded_steps_total"]
    batches, sequences = grown["seqloom_batch_sequences_count"], grown["seqloom_batch_sequences_sum"]
    median, slow = 1000 * np.percentile(delays, [50, 99])
    busy = grown["seqloom_compute_duration_seconds_sum"] / seconds
    rows = {
        "throughput": f"{steps / seconds:,.0f} frames/s, as fast as {callers} people speak; {steps:,.0f} in all",
        "batch size": f"{sequences / max(batches, 1):.1f} sequences on average, {batches:,.0f} batches",
        "padding": f"{100 * padded / max(steps + padded, 1):.1f} % of what was computed",
        "device": f"busy for {100 * busy:.0f} % of the time",
        "delay": f"{median:.1f} ms from a frame to its outputs (median), {slow:.1f} ms (99th percentile)",
    }
    for name, value in rows.items():
        print(f"  {name:10}  {value}")

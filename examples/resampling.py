"""Live audio from one sample rate to another: a windowed sinc, cut into one short filter for each output phase.

The resampling libraries gather 60 to 200 ms of audio before they answer, which a live stream of 10 ms frames cannot
wait for; this one answers after the 32 zero crossings of its sinc, 4 ms at 8 kHz.
"""

import math

import numpy as np

_CROSSINGS = 32
_KAISER_BETA = 8.0  # leaves -80 dB beside the passband
_PASSBAND = 0.94  # of what the lower rate can hold


class Resampler:
    """Takes samples at `source` Hz in chunks of any size and returns them at `target` Hz; both are whole numbers.

    Nothing depends on how the samples are cut: output m stands at the time of input m source / target.
    """

    def __init__(self, source: int, target: int) -> None:
        divisor = math.gcd(source, target)
        self._up, self._down = target // divisor, source // divisor
        cutoff = _PASSBAND * min(1.0, target / source)  # in units of the source's Nyquist frequency
        self._reach = math.ceil(_CROSSINGS / cutoff)
        taps = np.arange(1 - self._reach, self._reach + 1)
        # [phases, taps]: distances from an output to the inputs around it
        distance = np.arange(self._up)[:, None] / self._up - taps
        window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / self._reach) ** 2, 0, None)))
        self._filters = cutoff * np.sinc(cutoff * distance) * window
        self._filters /= self._filters.sum(axis=1, keepdims=True)
        # before the first sample there is silence
        self._tail = np.zeros(self._reach - 1)
        self._tail_start = 1 - self._reach
        self._received = self._returned = 0

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Returns what can be computed with these samples, [k] float32. samples: [n]."""
        self._received += len(samples)
        return self._take(samples, self._received - self._reach)

    def finish(self) -> np.ndarray:
        """Returns the rest, as if silence followed: ceil(n target / source) samples for n in all."""
        return self._take(np.zeros(self._reach), self._received)

    def _take(self, samples: np.ndarray, until: int) -> np.ndarray:
        """Returns the outputs that stand before input `until`."""
        inputs = np.concatenate([self._tail, samples])
        outputs = np.arange(self._returned, max(self._returned, -(-until * self._up // self._down)))
        before, phase = np.divmod(outputs * self._down, self._up)
        first = before + 1 - self._reach - self._tail_start
        around = inputs[first[:, None] + np.arange(2 * self._reach)]
        self._returned += len(outputs)
        keep_from = min(self._returned * self._down // self._up + 1 - self._reach - self._tail_start, len(inputs))
        self._tail, self._tail_start = inputs[keep_from:], self._tail_start + keep_from
        return np.einsum("mt,mt->m", around, self._filters[phase]).astype(np.float32)


def resample(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """Returns a whole recording, [n], at another rate: [ceil(n target / source)] float32."""
    resampler = Resampler(source, target)
    return np.concatenate([resampler.accept(samples), resampler.finish()])

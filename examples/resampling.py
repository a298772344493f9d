"""Resamples audio: whole recordings with soxr, live streams with its own windowed sinc.

The delay of soxr 1.1.0 is too long for a live stream of 10 ms frames. From 8 kHz to 16 kHz it is 61 ms (quality LQ)
to 118 ms (MQ), from 22.05 or 44.1 kHz 22 to 84 ms, from 48 kHz 20 to 77 ms; and LQ, the fastest, attenuates by 2 dB at
0.8 of the band. QQ has no delay, but no filter either; the experimental variable rate has 30 ms from 8 kHz.
`findings/soxr_holds_a_live_stream_back.sh` measures them. The delay of the sinc here is 32 zero crossings: 4.5 ms from
8 kHz, 2.2 ms from 22.05 kHz or more.

Features of whole recordings use the sinc, too: with soxr they differ by up to 0.9 of their deviation.
"""

import math

import numpy as np
import soxr

_CROSSINGS = 32
_KAISER_BETA = 8.0  # leaves -80 dB beside the passband
_PASSBAND = 0.94  # of what the lower rate can hold


class Resampler:
    """Takes samples at `source` Hz in chunks of any size and returns them at `target` Hz; both are whole numbers.

    The outputs do not depend on how the samples are split: output m is at the time of input m source / target.
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
        """Adds samples, [n]; returns the outputs that are ready, [k] float32."""
        self._received += len(samples)
        return self._take(samples, self._received - self._reach)

    def finish(self) -> np.ndarray:
        """Returns the rest, as if silence followed: ceil(n target / source) samples for n in all."""
        return self._take(np.zeros(self._reach), self._received)

    def _take(self, samples: np.ndarray, until: int) -> np.ndarray:
        """Returns the outputs before input `until`."""
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
    count = math.ceil(len(samples) * target / source)
    followed_by_silence = np.pad(samples, (0, math.ceil(source / target)))  # soxr rounds how many there are
    return soxr.resample(followed_by_silence.astype(np.float32), source, target)[:count]

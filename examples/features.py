"""Computes log-mel features of live audio: from samples as they arrive, a frame of 40 numbers for every 10 ms.

They are normalized to about mean 0 and deviation 1, which speeds up training.
"""

import kaldi_native_fbank
import numpy as np
from resampling import Resampler

RATE = 16_000
"""The sample rate of the features, in Hz; a stream of another rate is resampled to it."""

HOP = 160
"""The number of samples from one frame to the next: 10 ms."""

BINS = 40

MEAN, DEVIATION = -6.0, 4.0
"""Approximate statistics of the logarithms over the shipped speech; constant, so frames do not need later audio."""


class LogMel:
    """Computes features of one recording or live stream of `rate` samples a second, at the sample rate `at`.

    Frame t covers samples [160 t, 160 (t + 1)) at 16 kHz and is ready after 120 further samples (7.5 ms); at other
    rates the times are the same. The features do not depend on how the samples are split into chunks.
    """

    def __init__(self, rate: int = RATE, at: int = RATE) -> None:
        window = at // 40  # 25 ms, the middle of which is the middle of its frame
        self._hop = at // 100
        self._margin = (window - self._hop) // 2
        self._at = at
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = at
        options.frame_opts.frame_shift_ms = 1000 * self._hop / at
        options.frame_opts.frame_length_ms = 1000 * window / at
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = True
        options.mel_opts.num_bins = BINS
        self._fbank = kaldi_native_fbank.OnlineFbank(options)
        self._resampler = Resampler(rate, at) if rate != at else None
        self._samples = self._frames = 0
        self._fbank.accept_waveform(at, np.zeros(self._margin, np.float32))

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Adds samples, [n], within -1 to 1; returns the frames that are ready, [k, 40] float32."""
        return self._compute(self._resampler.accept(samples) if self._resampler else samples)

    def finish(self) -> np.ndarray:
        """Returns the last frames, as if silence followed. No samples may be added after that."""
        rest = self._compute(self._resampler.finish() if self._resampler else np.zeros(0))
        silence = -self._samples % self._hop + self._margin if self._samples else 0
        return np.concatenate([rest, self._compute(np.zeros(silence))])

    def _compute(self, samples: np.ndarray) -> np.ndarray:
        self._samples += len(samples)
        self._fbank.accept_waveform(self._at, np.ascontiguousarray(samples, np.float32))
        ready = range(self._frames, self._fbank.num_frames_ready)
        frames = np.array([self._fbank.get_frame(t) for t in ready], np.float32).reshape(len(ready), BINS)
        self._fbank.pop(len(ready))
        self._frames = ready.stop
        return (frames - np.float32(MEAN)) / np.float32(DEVIATION)


def log_mel(samples: np.ndarray, rate: int = RATE, at: int = RATE) -> np.ndarray:
    """Returns the features of a whole recording, [frames, 40] float32: a frame for each started 10 ms."""
    stream = LogMel(rate, at)
    return np.concatenate([stream.accept(samples), stream.finish()])

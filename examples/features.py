"""Log-mel features of live audio: samples go in as they come, a frame of 40 numbers comes out for every 10 ms.

They are brought to about mean 0 and deviation 1, which networks learn from fastest.
"""

import kaldi_native_fbank
import numpy as np
from resampling import Resampler

RATE = 16_000
"""What the features are computed at, Hz; audio of any other rate is resampled to it as it streams."""

HOP = 160
"""Samples from one frame to the next: 10 ms."""

BINS = 40

MEAN, DEVIATION = -6.0, 4.0
"""Of the logarithms over the shipped speech, about; the same for any audio, so that nothing depends on what follows."""


class LogMel:
    """The features of one recording or live stream of `rate` samples a second, computed at the rate `at`.

    Frame t belongs to samples [160 t, 160 (t + 1)) at 16 kHz and is ready once 120 samples more (7.5 ms) are there, at
    other rates likewise. Nothing depends on how the samples are cut into chunks.
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
        """Returns the frames that are ready with these samples, [k, 40] float32. samples: [n], within -1 to 1."""
        return self._compute(self._resampler.accept(samples) if self._resampler else samples)

    def finish(self) -> np.ndarray:
        """Returns the frames that were still to come, as if silence followed. Then nothing more may be accepted."""
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
    """Returns the features of a whole recording, [frames, 40] float32: one for each 10 ms that it begins."""
    stream = LogMel(rate, at)
    return np.concatenate([stream.accept(samples), stream.finish()])

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

_WINDOW = 400  # 25 ms, the middle of which is the middle of its frame
_MARGIN = (_WINDOW - HOP) // 2


class LogMel:
    """The features of one recording or live stream of `rate` samples a second.

    Frame t belongs to samples [160 t, 160 (t + 1)) and is ready once 120 samples more (7.5 ms) are there. Nothing
    depends on how the samples are cut into chunks.
    """

    def __init__(self, rate: int = RATE) -> None:
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = RATE
        options.frame_opts.frame_shift_ms = 1000 * HOP / RATE
        options.frame_opts.frame_length_ms = 1000 * _WINDOW / RATE
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = True
        options.mel_opts.num_bins = BINS
        self._fbank = kaldi_native_fbank.OnlineFbank(options)
        self._resampler = Resampler(rate, RATE) if rate != RATE else None
        self._samples = self._frames = 0
        self._fbank.accept_waveform(RATE, np.zeros(_MARGIN, np.float32))

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Returns the frames that are ready with these samples, [k, 40] float32. samples: [n], within -1 to 1."""
        return self._compute(self._resampler.accept(samples) if self._resampler else samples)

    def finish(self) -> np.ndarray:
        """Returns the frames that were still to come, as if silence followed. Then nothing more may be accepted."""
        rest = self._compute(self._resampler.finish() if self._resampler else np.zeros(0))
        silence = -self._samples % HOP + _MARGIN if self._samples else 0
        return np.concatenate([rest, self._compute(np.zeros(silence))])

    def _compute(self, samples: np.ndarray) -> np.ndarray:
        self._samples += len(samples)
        self._fbank.accept_waveform(RATE, np.ascontiguousarray(samples, np.float32))
        ready = range(self._frames, self._fbank.num_frames_ready)
        frames = np.array([self._fbank.get_frame(t) for t in ready], np.float32).reshape(len(ready), BINS)
        self._fbank.pop(len(ready))
        self._frames = ready.stop
        return (frames - np.float32(MEAN)) / np.float32(DEVIATION)


def log_mel(samples: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Returns the features of a whole recording, [frames, 40] float32: one for each 10 ms that it begins."""
    stream = LogMel(rate)
    return np.concatenate([stream.accept(samples), stream.finish()])

"""Features of a live stream are those of the whole recording, one for every 10 ms, centred on it."""

import kaldi_native_fbank
import numpy as np
import pytest
from features import BINS, DEVIATION, HOP, MEAN, RATE, LogMel, log_mel


def noise(samples):
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_live_features_are_those_of_the_whole_recording_however_it_is_cut(rate):
    samples, random = noise(rate), np.random.default_rng(1)
    whole = log_mel(samples, rate)
    for cuts in (np.arange(0, rate, rate // 100), np.sort(random.integers(0, rate, 300)), []):
        stream = LogMel(rate)
        pieces = [stream.accept(piece) for piece in np.split(samples, cuts)]
        np.testing.assert_allclose(np.concatenate([*pieces, stream.finish()]), whole, atol=1e-4)


@pytest.mark.parametrize("samples", [0, 1, HOP - 1, HOP, HOP + 1, 100 * HOP])
def test_every_10_ms_that_are_begun_have_a_frame(samples):
    features = log_mel(noise(samples))
    assert features.shape == (-(-samples // HOP), BINS)
    assert features.dtype == np.float32


def test_a_frame_is_ready_one_frame_after_its_own():
    stream = LogMel()
    assert [len(stream.accept(noise(HOP))) for _ in range(5)] == [0, 1, 1, 1, 1]
    assert len(stream.finish()) == 1


def test_a_click_is_loudest_in_its_own_frame():
    samples = np.zeros(50 * HOP, np.float32)
    samples[20 * HOP + HOP // 2] = 1
    assert log_mel(samples).sum(axis=1).argmax() == 20


def test_the_features_are_kaldi_s_but_for_their_scale():
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = BINS
    fbank, samples = kaldi_native_fbank.OnlineFbank(options), noise(RATE)
    fbank.accept_waveform(RATE, samples)
    fbank.input_finished()
    margin = 120  # samples from the middle of a frame to the edge of its window, less half a frame
    shifted = log_mel(samples[margin:])
    expected = (np.array([fbank.get_frame(t) for t in range(fbank.num_frames_ready)]) - MEAN) / DEVIATION
    # the first window begins before the samples here, and has silence where kaldi's has sound
    np.testing.assert_allclose(shifted[1 : len(expected)], expected[1:], atol=1e-4)

"""Resampled tones are the tones at the new rate, what the new rate cannot hold is gone, chunks make no difference."""

import numpy as np
import pytest
from resampling import Resampler, resample

RATES = [(8_000, 16_000), (11_025, 16_000), (22_050, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 8_000)]


def tone(frequency, rate, samples):
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_tone_stays_that_tone(source, target, share):
    frequency = share * min(source, target) / 2
    resampled = resample(tone(frequency, source, source // 2), source, target)
    assert len(resampled) == -(-(source // 2) * target // source)
    expected = tone(frequency, target, len(resampled))
    inner = slice(target // 50, -target // 50)  # the tone has edges, which are no tone
    np.testing.assert_allclose(resampled[inner], expected[inner], atol=2e-4)


@pytest.mark.parametrize(("source", "target"), [(22_050, 16_000), (44_100, 16_000), (16_000, 8_000)])
def test_a_tone_that_the_new_rate_cannot_hold_is_gone(source, target):
    resampled = resample(tone(1.08 * target / 2, source, source // 2), source, target)
    assert np.abs(resampled[target // 50 : -target // 50]).max() < 1e-3


@pytest.mark.parametrize(("source", "target"), RATES)
def test_chunks_make_no_difference(source, target):
    random = np.random.default_rng(0)
    samples = random.normal(size=5_000)
    cuts = np.sort(random.integers(0, len(samples), 40))
    resampler = Resampler(source, target)
    pieces = [resampler.accept(piece) for piece in np.split(samples, cuts)]
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.finish()]), resample(samples, source, target))


def test_live_audio_is_late_by_its_filter_only():
    resampler = Resampler(8_000, 16_000)
    returned = sum(len(resampler.accept(np.zeros(80))) for _ in range(10))
    assert 16_000 * 0.1 - returned <= 16_000 * 0.005


def test_nothing_in_gives_nothing_out():
    assert resample(np.zeros(0), 44_100, 16_000).shape == (0,)

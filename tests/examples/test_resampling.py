"""Tones stay those tones at the new rate, whole or live; what it cannot hold is gone; chunks make no difference."""

import numpy as np
import pytest
from resampling import Resampler, resample

RATES = [(8_000, 16_000), (11_025, 16_000), (22_050, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 8_000)]


def tone(frequency, rate, samples):
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def live(samples, source, target):
    """What a live stream has of a whole recording."""
    resampler = Resampler(source, target)
    return np.concatenate([resampler.accept(samples), resampler.finish()])


@pytest.mark.parametrize("way", [resample, live])
@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_tone_stays_that_tone(source, target, share, way):
    frequency = share * min(source, target) / 2
    resampled = way(tone(frequency, source, source // 2), source, target)
    assert resampled.dtype == np.float32
    assert len(resampled) == -(-(source // 2) * target // source)
    expected = tone(frequency, target, len(resampled))
    inner = slice(target // 50, -target // 50)  # the tone has edges, which are no tone
    np.testing.assert_allclose(resampled[inner], expected[inner], atol=5e-4)


@pytest.mark.parametrize("way", [resample, live])
@pytest.mark.parametrize(("source", "target"), [(22_050, 16_000), (44_100, 16_000), (16_000, 8_000)])
def test_a_tone_that_the_new_rate_cannot_hold_is_gone(source, target, way):
    resampled = way(tone(1.08 * target / 2, source, source // 2), source, target)
    assert np.abs(resampled[target // 50 : -target // 50]).max() < 1e-3


@pytest.mark.parametrize(("source", "target"), RATES)
def test_chunks_make_no_difference(source, target):
    random = np.random.default_rng(0)
    samples = random.normal(size=5_000)
    cuts = np.sort(random.integers(0, len(samples), 40))
    resampler = Resampler(source, target)
    pieces = [resampler.accept(piece) for piece in np.split(samples, cuts)]
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.finish()]), live(samples, source, target))


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000])
def test_live_audio_is_late_by_its_filter_only(source):
    resampler, target = Resampler(source, 16_000), 16_000
    returned = 0
    for received in range(1, source + 1):
        late = received / source - returned / target  # by how much is the next sample to come
        if arrived := len(resampler.accept(np.zeros(1))):
            assert late <= 0.005
        returned += arrived
    assert returned >= 0.995 * target


@pytest.mark.parametrize("samples", [0, 1, 2, 441, 1_000])
@pytest.mark.parametrize("way", [resample, live])
@pytest.mark.parametrize("source", [2_000, 8_000, 44_100, 384_000])
def test_the_new_rate_has_as_many_samples_as_it_begins(source, samples, way):
    assert way(np.zeros(samples), source, 16_000).shape == (-(-samples * 16_000 // source),)

"""WAV files of every format that recorders write are read right, or refused by the file's name and the format's."""

import re
import wave

import numpy as np
import pytest
from helpers.wav_bytes import A_LAW, FLOAT, LIST, MU_LAW, VALUES, chunk, extensible, fmt, riff, whole_numbers
from recordings import SPEECH
from wav_files import read_wav

REAL = SPEECH.parents[2] / "shared" / "data" / "fsdd"
PCM_16 = whole_numbers(VALUES, 2)


def plain(path):
    """What the standard library reads of 16-bit samples."""
    with wave.open(str(path)) as file:
        assert (file.getsampwidth(), file.getnchannels()) == (2, 1)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, file.getframerate()


@pytest.mark.parametrize("folder", [SPEECH / "audio", REAL], ids=["shipped", "real"])
def test_samples_are_those_of_the_standard_library(folder):
    if folder == REAL and not folder.is_dir():
        pytest.skip("there are no real recordings")
    for file in sorted(folder.glob("*.wav"))[:: 20 if folder == REAL else 1]:
        samples, rate = read_wav(file)
        expected, expected_rate = plain(file)
        assert rate == expected_rate
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, expected, atol=1e-4, err_msg=file.name)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_every_width(read, width, channels):
    values = VALUES[:96]
    header = fmt(bits=8 * width, channels=channels, rate=44_100)
    samples, rate = read(riff(header, chunk(b"data", whole_numbers(values, width))))
    assert rate == 44_100
    expected = values.reshape(-1, channels).mean(axis=1)
    np.testing.assert_allclose(samples, expected, atol=max(2.0 ** (1 - 8 * width), 1e-6))


@pytest.mark.parametrize("header", [fmt, extensible])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats(read, dtype, header):
    file = riff(header(FLOAT, 8 * np.dtype(dtype).itemsize), chunk(b"data", VALUES.astype(dtype).tobytes()))
    np.testing.assert_allclose(read(file)[0], VALUES, atol=1e-6)


@pytest.mark.parametrize("header", [fmt, extensible])
def test_mu_law_and_a_law(read, header):
    codes = np.arange(256)
    data = chunk(b"data", codes.astype("u1").tobytes())
    bits = ~codes
    expected = ((((bits & 15) << 3) + 132 << (bits >> 4 & 7)) - 132) * np.where(bits & 128, -1, 1)
    np.testing.assert_allclose(read(riff(header(MU_LAW, 8), data))[0], expected / 32768, atol=1e-4)
    bits = codes ^ 0x55
    exponent, step = bits >> 4 & 7, ((bits & 15) << 4) + 8
    expected = np.where(exponent, step + 256 << np.maximum(exponent - 1, 0), step) * np.where(bits & 128, 1, -1)
    np.testing.assert_allclose(read(riff(header(A_LAW, 8), data))[0], expected / 32768, atol=1e-4)


@pytest.mark.parametrize(
    ("header", "width", "bits"),
    [
        (extensible(bits=16), 2, 16),
        (extensible(bits=24), 3, 24),
        (extensible(bits=24, valid_bits=20), 3, 20),
        (extensible(bits=20, valid_bits=20), 3, 20),
        (extensible(bits=32, valid_bits=24), 4, 24),
        (fmt(bits=20), 3, 20),
        (fmt(bits=12), 2, 12),
    ],
)
def test_samples_of_fewer_bits_than_their_bytes_have(read, header, width, bits):
    values = np.round(VALUES * 2 ** (bits - 1)) / 2 ** (bits - 1)
    samples, _ = read(riff(header, chunk(b"data", whole_numbers(values, width))))
    np.testing.assert_allclose(samples, values, atol=1e-6)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (fmt(rate=0), "PCM, 16 bits, 0 Hz, channels: 1: expected 2000 to 384000 Hz"),
        (extensible(MU_LAW, 8, rate=0), "WAVE_FORMAT_EXTENSIBLE, mu-law, 8 bits, 0 Hz, channels: 1: expected 2000 to "),
        (fmt(rate=1), "PCM, 16 bits, 1 Hz, channels: 1: expected 2000 to 384000 Hz"),
        (fmt(rate=2**32 - 1), "PCM, 16 bits, 4294967295 Hz, channels: 1: expected 2000 to 384000 Hz"),
        (fmt(bits=24, block=4), "PCM, 24 bits, 8000 Hz, channels: 1: a frame has 4 bytes: expected 3"),
        (
            extensible(bits=20, channels=2, block=8),
            "PCM, 20 bits, 8000 Hz, channels: 2: a frame has 8 bytes: ",
        ),
        (fmt(channels=0), "PCM, 16 bits, 8000 Hz, channels: 0: Channel count is zero"),
        (fmt(bits=40), "PCM, 40 bits, 8000 Hz, channels: 1: "),
        (fmt(FLOAT, 16), "float, 16 bits, 8000 Hz, channels: 1: "),
        (fmt(0x55, 0), "encoding 0x0055, 0 bits, 8000 Hz, channels: 1: "),
        (extensible(0x1234), "WAVE_FORMAT_EXTENSIBLE, encoding 0x1234, 16 bits, 8000 Hz, channels: 1: "),
    ],
)
def test_a_format_that_cannot_be_read_is_named(read, header, reason):
    with pytest.raises(ValueError, match=rf"^sound\.wav is no WAV file that can be read, .*{re.escape(reason)}"):
        read(riff(header, chunk(b"data", PCM_16)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(read, value):
    with pytest.raises(ValueError, match=r"^sound\.wav, float, 32 bits, .* not finite: expected -1 to 1$"):
        read(riff(fmt(FLOAT, 32), chunk(b"data", np.array([0, value], "<f4").tobytes())))


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"something else",
        b"fLaC" + bytes(100),
        riff(),
        riff(LIST),
        riff(chunk(b"data", PCM_16)),
        riff(chunk(b"fmt ", bytes(10)), chunk(b"data", PCM_16)),
    ],
)
def test_what_is_no_wav_file_is_named(read, file):
    with pytest.raises(ValueError, match=r"^sound\.wav is no WAV file: "):
        read(file)


def test_what_cannot_be_opened_or_held_is_named(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with open(tmp_path / "long.wav", "wb") as file:
        file.truncate(2**32)
    reasons = {"folder": "cannot be read: ", "none": "cannot be read: ", "long": "holds 4294967296 bytes: expected "}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"^{name}\.wav {reason}"):
            read_wav(tmp_path / f"{name}.wav")

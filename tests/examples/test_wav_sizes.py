"""However long a WAV file says its samples are, all of them are read, and nothing of what stands around them."""

import struct

import numpy as np
import pytest
from helpers.wav_bytes import FLOAT, LIST, MU_LAW, PCM, UNKNOWN, VALUES, chunk, extensible, fmt, riff, whole_numbers

PCM_16, PCM_24 = (whole_numbers(VALUES, width) for width in (2, 3))


@pytest.mark.parametrize("magic", [b"RIFF", b"RF64"])
@pytest.mark.parametrize("behind", [b"", LIST, LIST + chunk(b"id3 ", b"odd")], ids=["nothing", "LIST", "LIST, id3"])
@pytest.mark.parametrize("whole", [0, 8, 36, UNKNOWN, None])
@pytest.mark.parametrize("size", [0, UNKNOWN, 0x7FFFFFFF, UNKNOWN - 36])
def test_a_streamed_file_has_all_its_samples_and_nothing_else(read, size, whole, behind, magic):
    long_sizes = chunk(b"ds64", struct.pack("<QQQI", 0, size, 0, 0)) if magic == b"RF64" else b""
    samples, _ = read(riff(long_sizes, LIST, fmt(), chunk(b"data", PCM_16, size=size), behind, size=whole, magic=magic))
    np.testing.assert_allclose(samples, VALUES, atol=1e-4)


@pytest.mark.parametrize("filler", [True, False])
@pytest.mark.parametrize(
    ("size", "behind"),  # of an unknown size with nothing behind, nothing could tell a filler from a sample
    [(None, b""), (None, LIST), (0, LIST), (UNKNOWN, LIST)],
    ids=["nothing", "LIST", "0, LIST", "unknown, LIST"],
)
@pytest.mark.parametrize(
    ("header", "data"),
    [
        (fmt(bits=8), whole_numbers(VALUES, 1)),
        (fmt(bits=24), PCM_24),
        (extensible(MU_LAW, 8), bytes(range(155, 252))),
    ],
    ids=["8 bits", "24 bits", "mu-law"],
)
def test_an_odd_number_of_bytes_with_and_without_its_filler(read, header, data, size, behind, filler):
    samples, _ = read(riff(header, chunk(b"data", data, size=size, filler=filler), behind))
    expected, _ = read(riff(header, chunk(b"data", data)))
    assert len(samples) == len(VALUES)
    np.testing.assert_array_equal(samples, expected)


def test_bytes_that_make_no_whole_frame_are_no_sample(read):
    for channels, bytes_of_no_frame in ((1, b"\1"), (2, b"\1\2"), (2, b"\1\2\3")):
        data = chunk(b"data", PCM_16[:-2] + bytes_of_no_frame)
        samples, _ = read(riff(fmt(channels=channels), data, LIST))
        np.testing.assert_allclose(samples, VALUES[:-1].reshape(-1, channels).mean(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (fmt(), PCM_16),
        (fmt(channels=2), PCM_16[:-2]),
        (extensible(bits=24), PCM_24),
        (fmt(FLOAT, 32), VALUES.astype("<f4").tobytes()),
        (fmt(MU_LAW, 8), bytes(range(97))),
    ],
    ids=["16 bits", "stereo", "24 bits", "float", "mu-law"],
)
def test_wherever_a_file_is_cut_its_whole_frames_are_read_or_it_is_refused(read, header, data):
    file = riff(LIST, header, chunk(b"data", data), LIST)
    whole, _ = read(file)
    begin, frame = file.index(b"data") + 8, len(data) // len(whole)
    for end in range(len(file)):
        if end < begin:
            with pytest.raises(ValueError, match=r"^sound\.wav is no WAV file: "):
                read(file[:end])
        else:
            samples, _ = read(file[:end])
            assert len(samples) == min((end - begin) // frame, len(whole))
            np.testing.assert_array_equal(samples, whole[: len(samples)])


def test_the_other_order_of_bytes(read):
    data = np.frombuffer(PCM_16, "<i2").astype(">i2").tobytes()
    header = b"fmt " + struct.pack(">IHHIIHH", 16, PCM, 1, 8_000, 16_000, 2, 16)
    for size in (len(data), 0, UNKNOWN):
        samples, rate = read(riff(header, chunk(b"data", data, size=size, order=">"), magic=b"RIFX", order=">"))
        assert rate == 8_000
        np.testing.assert_allclose(samples, VALUES, atol=1e-4)


@pytest.mark.parametrize("behind", [b"", LIST], ids=["nothing", "LIST"])
def test_a_file_without_samples_has_none(read, behind):
    samples, rate = read(riff(fmt(rate=16_000), chunk(b"data", b""), behind))
    assert (samples.shape, rate) == ((0,), 16_000)

"""WAV files put together byte by byte, as recorders write them and as they should not."""

import struct

import numpy as np

UNKNOWN = 0xFFFFFFFF
"""The size that a header has where it could not be known when it was written; 0 is another."""

PCM, FLOAT, A_LAW, MU_LAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_MEDIA_SUBTYPE = bytes.fromhex("000000001000800000aa00389b71")  # of every encoding, behind its number


def chunk(name, contents, size=None, filler=True, order="<"):
    """A chunk that says it has `size` bytes, and has a filler where there is an odd number of them."""
    size = len(contents) if size is None else size
    return name + struct.pack(f"{order}I", size) + contents + b"\0" * (filler and len(contents) % 2)


def riff(*chunks, size=None, magic=b"RIFF", order="<"):
    """A whole file of these chunks."""
    contents = b"WAVE" + b"".join(chunks)
    return magic + struct.pack(f"{order}I", len(contents) if size is None else size) + contents


def fmt(encoding=PCM, bits=16, channels=1, rate=8_000, block=None, more=b"", order="<"):
    """The chunk that tells the format; block: bytes of a frame."""
    block = channels * -(-bits // 8) if block is None else block
    per_second = rate * block % 2**32
    return chunk(b"fmt ", struct.pack(f"{order}HHIIHH", encoding, channels, rate, per_second, block, bits) + more)


def extensible(encoding=PCM, bits=16, valid_bits=None, **numbers):
    """The same as WAVE_FORMAT_EXTENSIBLE has it: `valid_bits` of sound in samples of `bits`."""
    more = struct.pack("<HHIH", 22, bits if valid_bits is None else valid_bits, 0, encoding) + _MEDIA_SUBTYPE
    return fmt(EXTENSIBLE, bits, more=more, **numbers)


def whole_numbers(values, width):
    """Values within -1 to 1 as samples of `width` bytes; those of one byte have no sign in WAV files."""
    top = 2 ** (8 * width - 1)
    whole = [min(round(value * top), top - 1) for value in values]
    return b"".join((value + top * (width == 1)).to_bytes(width, "little", signed=width > 1) for value in whole)


LIST = chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"a recorder"))
"""Texts, as recorders put them before or behind the samples."""

VALUES = np.concatenate([[0.5, -0.25, 0.125, -1], 0.8 * np.sin(0.3 * np.arange(93))])
"""Sound, an odd number of samples."""

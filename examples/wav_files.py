"""Reads WAV files of any recorder: checks and repairs the header, then reads the samples with libsndfile.

A recorder that streams, or loses power, leaves the size of the samples at 0 or at a number larger than any file.
libsndfile 1.2.2 then finds no samples, or reads what follows them, such as a LIST of texts, as samples; and it reads
samples of 24 bits in four bytes as if they were in three: `findings/libsndfile_reads_streamed_wav_files_wrongly.sh`.
"""

import io
import pathlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile

RATES = range(2_000, 384_001)
"""In Hz. Audio with a lower rate has too little signal for the features; a higher rate is a broken header."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ENCODINGS = {_PCM: "PCM", _FLOAT: "float", 6: "A-law", 7: "mu-law"}
_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<"}  # of bytes, as struct has them
_NAME = re.compile(rb"(?=[ -~]{4})")  # of a chunk
_LARGEST = 2**32  # bytes


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Returns a WAV file's samples, [n] float32 with its channels averaged, and its rate in Hz.

    They are within -1 to 1, unless a file of floats exceeds that. Of a truncated file the whole frames are read. If the
    header does not have the number of samples, they end at the chunks at the end of the file, or at its end. Raises
    ValueError, which names the file and its format, if a file cannot be read or is inconsistent.
    """
    try:
        if (size := path.stat().st_size) >= _LARGEST:
            raise ValueError(f"{path.name} holds {size} bytes: expected less than 4 GiB")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        header = _Header.of(data)
    except ValueError as error:
        raise ValueError(f"{path.name} is no WAV file: {error}") from error
    try:
        header.check()
        samples, rate = soundfile.read(io.BytesIO(header.sized(data)), dtype="float32", always_2d=True)
    except (ValueError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(f"{path.name} is no WAV file that can be read, {header.format}: {reason}") from error
    if not np.isfinite(samples).all():
        raise ValueError(f"{path.name}, {header.format}, holds samples that are not finite: expected -1 to 1")
    return samples.mean(axis=1), rate


@dataclass(frozen=True)
class _Header:
    """The header of a WAV file.

    encoding: Microsoft's number. block: bytes of a frame, which has a sample of each channel. start, size: the
    position of the samples in the file, and their size in bytes according to the header.
    """

    encoding: int
    channels: int
    rate: int
    block: int
    bits: int
    extensible: bool
    start: int
    size: int

    @classmethod
    def of(cls, data: bytes) -> "_Header":
        """Reads the header. Raises ValueError if it is not that of a WAV file."""
        if data[:4] not in _ORDERS or data[8:12] != b"WAVE":
            raise ValueError(f"it begins with {data[:12]!r}: expected RIFF, four bytes, WAVE")
        order, long_size, fields = _ORDERS[data[:4]], None, None
        for name, at, size in _chunks(data, 12, order):
            if name == b"fmt " and not fields:
                chunk = data[at : at + size]
                if len(chunk) < 16:
                    raise ValueError(f"its chunk 'fmt ' has {len(chunk)} bytes: expected 16 or more")
                encoding, *numbers = struct.unpack_from(f"{order}HHI4xHH", chunk)
                extensible = encoding == _EXTENSIBLE and len(chunk) >= 26  # what it extends stands behind
                (encoding,) = struct.unpack_from(f"{order}H", chunk, 24 if extensible else 0)
                fields = (encoding, *numbers, extensible)
            elif name == b"ds64" and data[:4] == b"RF64":
                long_size = int.from_bytes(data[at + 8 : at + 16], "little")
            elif name == b"data" and fields:
                return cls(*fields, at, size if long_size is None else long_size)
        raise ValueError("it has no chunk 'fmt ' with a chunk 'data' behind it")

    @property
    def format(self) -> str:
        """The name and numbers of the format."""
        encoding = _ENCODINGS.get(self.encoding, f"encoding 0x{self.encoding:04x}")
        kind = "WAVE_FORMAT_EXTENSIBLE, " if self.extensible else ""
        return f"{kind}{encoding}, {self.bits} bits, {self.rate} Hz, channels: {self.channels}"

    def check(self) -> None:
        """Raises ValueError for formats that libsndfile reads wrongly, or refuses without a reason."""
        if self.rate not in RATES:
            raise ValueError(f"expected {RATES[0]} to {RATES[-1]} Hz")
        packed = self.channels * -(-self.bits // 8)
        if self.encoding in (_PCM, _FLOAT) and packed and self.block != packed:
            # at which end of its bytes a sample then stands, recorders do not agree
            raise ValueError(f"a frame has {self.block} bytes: expected {packed}")

    def sized(self, data: bytes) -> bytes:
        """Returns the file with the real size of its samples, if the size in the header is missing or too large."""
        if 0 < self.size <= len(data) - self.start:
            return data
        order = _ORDERS[data[:4]]
        end = _end_of_samples(data, self.start, order)
        if self.block == 1 and end < len(data) and (end - self.start) % 2 == 0 and data[end - 1] == 0:
            end -= 1  # the filler behind an odd number of bytes; it makes no frame of more bytes
        magic = data[:4].replace(b"RF64", b"RIFF")  # whose size is short
        return magic + data[4 : self.start - 4] + struct.pack(f"{order}I", end - self.start) + data[self.start : end]


def _chunks(data: bytes, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, the position and the stated size in bytes of each chunk."""
    while at + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        yield name, at + 8, size
        at += 8 + size + size % 2


def _end_of_samples(data: bytes, start: int, order: str) -> int:
    """Returns the first position from which a sequence of chunks, the first not empty, reaches the end of the file; the
    end of the file if there is none. Each position is checked once, as many sequences share positions."""
    size_of = struct.Struct(f"{order}I").unpack_from
    last = len(data)
    leads: dict[int, bool] = {}  # whether from a place they do
    for match in _NAME.finditer(data, start):
        at = match.start()
        if at + 8 > last:
            break
        (size,) = size_of(data, at + 4)
        if not 0 < size <= last - at - 8:
            continue
        way = []
        while at not in leads and at + 8 <= last:
            way.append(at)
            (size,) = size_of(data, at + 4)
            at += 8 + size + size % 2
        # an odd size at the end may have no filler behind it
        found = leads.get(at, at == last or (bool(way) and at == last + 1))
        leads.update(dict.fromkeys(way, found))
        if found:
            return match.start()
    return last

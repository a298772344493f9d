#!/usr/bin/env bash
# libsndfile reads a streamed WAV file without an error and wrongly: no samples at all, or a LIST of texts as samples.
#
# Seen with soundfile 0.14.0, which carries libsndfile 1.2.2 (https://github.com/libsndfile/libsndfile, src/wav.c, the
# case of the 'data' marker). Who writes a WAV file into a pipe cannot go back to its header, and leaves the size of the
# samples at 0 (GStreamer's wavenc, with 36 as that of the whole file) or at 0xFFFFFFFF (ffmpeg).
# - A size of 0 is taken for the end of the file only where the size of the whole file is 8; with any other number, 36
#   among them, there are 0 samples.
# - 0xFFFFFFFF is taken for the end of the file, so a chunk behind the samples is read as sound.
# - A header of 24 bits with frames of 4 bytes contradicts itself, but is read as if its frames had 3 bytes: as noise.
#
# Exits 1 once one of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'soundfile==0.14.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys

import numpy as np
import soundfile

UNKNOWN = 0xFFFFFFFF
print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__)
values = np.round(0.5 * np.sin(0.1 * np.arange(400)) * 2**15).astype("<i2")
texts = b"LIST" + struct.pack("<I", 22) + b"INFOISFT" + struct.pack("<I", 10) + b"a recorder"


def read(samples, whole, size, behind=b"", bits=16, frame=2):
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 8_000 * frame, frame, bits)
    file = b"RIFF" + struct.pack("<I", whole) + header + b"data" + struct.pack("<I", size) + samples + behind
    return soundfile.read(io.BytesIO(file), dtype="float64")[0]


data, as_ever = values.tobytes(), True


def tell(what, found, surprise):
    global as_ever
    print(f"{what}: {len(found)} samples of 400, {'as ever' if surprise else 'CHANGED'}")
    as_ever = as_ever and surprise


found = read(data, 36 + 800, 800)
tell("sizes that are known, to begin with", found, np.array_equal(found, values / 2**15))
found = read(data, 8, 0)
tell("the size of the samples 0, of the file 8", found, np.array_equal(found, values / 2**15))
for whole in (36, 0, UNKNOWN):
    found = read(data, whole, 0)
    tell(f"the size of the samples 0, of the file {whole}", found, len(found) == 0)
for whole, size in ((UNKNOWN, UNKNOWN), (8, 0)):
    found = read(data, whole, size, texts)
    more = np.round(found[400:] * 2**15).astype("<i2").tobytes()
    tell(f"the size of the samples {size}, of the file {whole}, and a LIST behind", found, len(more) and more in texts)
    print(f"  the last of them: {more!r}")
in_four_bytes = (values.astype("<i4") << 8).tobytes()
found = read(in_four_bytes, 36 + 1600, 1600, bits=24, frame=4)
tell("24 bits in frames of 4 bytes", found, len(found) == 533)
sys.exit(not as_ever)
PYTHON

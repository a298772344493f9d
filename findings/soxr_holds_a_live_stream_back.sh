#!/usr/bin/env bash
# soxr's stream for real-time use holds audio back for 20 to 118 ms, and longest where the rates are lowest.
#
# Seen with soxr 1.1.0 (python-soxr, https://github.com/dofuuz/python-soxr, with libsoxr 0.1.3-14-ga66f3ee), whose
# ResampleStream is documented "for real-time processing". Its filters work on blocks: samples come in bursts, and the
# first of a burst stands so far behind what has been heard. A lower quality is hardly faster: from 8 kHz to 16 kHz LQ
# makes a sample wait for 61 ms of audio, MQ for 118 ms and VHQ for 111 ms. `delay()` tells of what is pending now, not of
# the worst. Only QQ answers at once, and it has no filter: a tone that the new rate cannot hold stays, as another tone.
# The variable rate (vr=True, "experimental") waits for 30 ms from 8 kHz, for 11 to 14 ms from 22.05 kHz or more.
#
# Exits 1 once a quality that filters answers within 20 ms at every rate, or QQ filters: then a live stream can have it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'soxr==1.1.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import soxr

RATES, TARGET = (8_000, 22_050, 44_100, 48_000), 16_000
print("soxr", soxr.__version__, "with libsoxr", soxr.__libsoxr_version__)


def stream(source, quality, variable):
    made = soxr.ResampleStream(source, TARGET, 1, dtype="float32", quality=quality, vr=variable)
    if variable:
        made.set_io_ratio(source, TARGET)
    return made


def worst_wait(source, quality, variable=False):
    """Milliseconds of audio that have come in since the moment of an output sample, when that sample comes out."""
    made, returned, waits = stream(source, quality, variable), 0, []
    for received in range(1, 2 * source + 1):
        arrived = len(made.resample_chunk(np.zeros(1, np.float32)))
        if arrived:
            waits.append(received / source - returned / TARGET)
        returned += arrived
    return 1000 * max(waits)


def alias(source, quality):
    """Of a tone of 10 kHz, which 16 kHz cannot hold: how much is left, in dB."""
    tone = np.sin(2 * np.pi * 10_000 * np.arange(source) / source).astype(np.float32)
    return 20 * np.log10(np.abs(soxr.resample(tone, source, TARGET, quality)[1_600:-1_600]).max())


waits = {}
print("the worst wait in ms          " + "".join(f"{rate:>9}" for rate in RATES) + "   10 kHz from 48 kHz")
for name, variable in [("QQ", False), ("LQ", False), ("MQ", False), ("HQ", False), ("VHQ", False), ("HQ", True)]:
    row = [worst_wait(rate, name, variable) for rate in RATES]
    left = "" if variable else f"{alias(48_000, name):9.0f} dB"
    print(f"{name + (' variable' if variable else ''):30}" + "".join(f"{wait:9.1f}" for wait in row) + left)
    waits[name, variable] = max(row)
too_late = all(wait > 20 for (name, _), wait in waits.items() if name != "QQ")
sys.exit(not (too_late and alias(48_000, "QQ") > -3))
PYTHON

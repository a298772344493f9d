"""The benchmarks, run as `python -m benchmarks.bench_server` and its kin."""

import pathlib
import sys

# the examples are programs, not a package, and own a server, recordings and training that are measured here
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

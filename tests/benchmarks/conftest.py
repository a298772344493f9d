"""Puts the folder of the benchmarks on the path: they are programs, not a package."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

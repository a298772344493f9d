"""Puts the folder of the examples on the path: they are programs, not a package, and own a server and recordings."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

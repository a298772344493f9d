"""The precision in which a run of the suite serves models that name none, and how near outputs are in it.

`pytest --precision bf16` serves every float32 model so whose test does not say otherwise. What a server computes, and
what a network gives, is held against the tolerances here; gradients, losses and trained weights are computed in full
whatever the mode, so their tolerances stand where they are used.
"""

import functools
import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import seqloom
from seqloom_server.nn.spec import ModelSpec

PRECISIONS = ("full", "tf32", "bf16", "int8")
STEP = 2.0**-8  # between numbers of bfloat16 that are a little above 1
_ROUNDED = ("bf16", "int8")

_served = "full"
_plain_init = {cls: cls.__init__ for cls in (ModelSpec, seqloom.ModelSpec)}


def serve_in(precision: str) -> None:
    """Has both ModelSpec classes take this precision where a float32 model names none.

    In int8 networks of relu stay in full, which it refuses.
    A spec that is made as a module is imported is of the mode only if this was called before. What the wire leaves
    unspecified, and what the command `seqloom-server create-model` makes, is in full in every mode, as they promise.
    """
    global _served
    _served = precision
    for cls, plain in _plain_init.items():
        cls.__init__ = plain if precision == "full" else _in(precision, plain)


def served(dtype: str = "float32") -> str:
    """The precision of a model of this dtype that names none."""
    return _served if dtype == "float32" else "full"


def near(dtype: str = "float32", **full: float) -> dict[str, float]:
    """rtol and atol of what is served, beside the exact outputs or those of the network in full.

    full: them where products are in full; on the CPU those of tf32 are the same.
    """
    return _at_least(6 * STEP, dtype, full)


def alike(dtype: str = "float32", **full: float) -> dict[str, float]:
    """rtol and atol between a sequence alone, in company and in chunks."""
    return _at_least(2 * STEP, dtype, full)


def assert_labels(labels: npt.NDArray[Any], logits: npt.NDArray[Any], dtype: str = "float32") -> None:
    """Asserts that labels [T], or the first k [T, k], are of the largest logits [T, O], the best one first.

    In bfloat16 and int8 a class may stand for another whose logit is no farther than what both may be off.
    """
    chosen = labels if labels.ndim == logits.ndim else labels[..., None]
    best = np.argsort(-logits, axis=-1, kind="stable")[..., : chosen.shape[-1]]
    if served(dtype) not in _ROUNDED:
        np.testing.assert_array_equal(chosen, best)
    assert (np.diff(np.sort(chosen, axis=-1)) > 0).all(), "no class is there twice"
    got, wanted = (np.take_along_axis(logits, which, -1) for which in (chosen, best))
    tolerance = near(dtype, rtol=0, atol=0)
    np.testing.assert_allclose(got, wanted, rtol=2 * tolerance["rtol"], atol=2 * tolerance["atol"])


def _at_least(least: float, dtype: str, full: dict[str, float]) -> dict[str, float]:
    return {name: max(value, least) if served(dtype) in _ROUNDED else value for name, value in full.items()}


def _in(precision: str, plain: Any) -> Any:
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        given = signature.bind_partial(self, *args, **fields).arguments
        relu = given.get("activation") == "relu" and precision == "int8"
        if given.get("dtype", "float32") == "float32" and "precision" not in given and not relu:
            fields["precision"] = precision
        plain(self, *args, **fields)

    return init

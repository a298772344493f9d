"""The bare products of a slice, by each library that torch has here: what a processor could do, with nothing around it.

Asked [model, sequences, steps, seconds], it answers with microseconds a frame: of each library, and of the fastest for
each product, which is the ceiling. A slice is the input product of all rows, one recurrent product a step, each of
which needs the one before it, and the output product. No activation functions, no copies, no choice of labels.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable

import torch
from seqloom import ModelSpec
from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn.spec import ModelSpec as ServerSpec

from benchmarks.harness.child_process import questions, say
from benchmarks.loads.workload import SERVED

Product = Callable[[torch.Tensor], torch.Tensor]
"""x [rows, K] -> x W' [rows, N]."""

_DTYPES = {"full": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


def _mkl(weight: torch.Tensor) -> Product:
    """What torch takes of itself: MKL in float32, oneDNN without packing in bfloat16."""
    transposed = weight.t()
    return lambda rows: torch.mm(rows, transposed)


def _packed(weight: torch.Tensor) -> Product:
    """oneDNN with weights in its own layout."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")


def _whole_numbers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in 8 bits and their scales by output row."""
    scales = weight.abs().amax(1) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def _int_mm(weight: torch.Tensor) -> Product:
    """torch's product of int8, with sums of int32; its result is not used by the next step."""
    transposed = _whole_numbers(weight)[0].t()
    return lambda rows: torch._int_mm(rows.view(torch.int8), transposed)


def _qlinear(weight: torch.Tensor) -> Product:
    """oneDNN with weights of int8 in its own layout, inputs of a fixed scale and a result of float32."""
    numbers, scales = _whole_numbers(weight)
    packed, zeros = torch.ops.onednn.qlinear_prepack(numbers, None), torch.zeros(len(weight), dtype=torch.int64)
    return lambda rows: torch.ops.onednn.qlinear_pointwise(
        rows, 1 / 127, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


_LIBRARIES: dict[str, Callable[[torch.Tensor], Product]] = {"torch_mm": _mkl, "onednn_packed": _packed}
_INT8_LIBRARIES: dict[str, Callable[[torch.Tensor], Product]] = {"torch_int_mm": _int_mm, "onednn_qlinear": _qlinear}


@dataclasses.dataclass(frozen=True)
class Slice:
    """The three products of an Elman network's slice, in the order in which they run."""

    spec: ModelSpec
    sequences: int
    steps: int

    @functools.cached_property
    def parts(self) -> dict[str, tuple[int, int, int, int]]:
        """Rows, inputs and outputs of each product, and how often it runs, one after the other."""
        rows, hidden = self.sequences * self.steps, self.spec.hidden_size
        return {
            "input": (rows, self.spec.input_size, hidden, 1),
            "recurrent": (self.sequences, hidden, hidden, self.steps),
            "output": (rows, hidden, self.spec.output_size, 1),
        }

    def measurings(self) -> dict[tuple[str, str], Callable[[], object]]:
        """What is to be timed, by product and library."""
        dtype, found = _DTYPES[self.spec.precision], {}
        small = self.spec.precision == "int8"
        for part, (rows, inputs, outputs, times) in self.parts.items():
            # so that states neither vanish nor grow over the steps
            weight = torch.randn(outputs, inputs).mul_(inputs**-0.5).to(dtype)
            x = (
                torch.randint(1, 256, (rows, inputs), dtype=torch.uint8)
                if small
                else torch.randn(rows, inputs).to(dtype)
            )
            for name, library in (_INT8_LIBRARIES if small else _LIBRARIES).items():
                with contextlib.suppress(RuntimeError):  # not on this processor in this precision
                    found[part, name] = functools.partial(_run, library(weight), x, times)
        return found


def _run(product: Product, rows: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        result = product(rows)
        if times > 1 and result.dtype is rows.dtype:  # a step needs the one before it; in int8 it only comes after
            rows = result
    return result


@torch.inference_mode()
def round_of(slice_: Slice, seconds: float) -> dict[str, float]:
    """Times the products in turn; returns the medians as microseconds a frame."""
    measurings = slice_.measurings()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in measurings}
    for measure in measurings.values():
        measure()  # warms up
    end = time.perf_counter() + seconds
    for key in itertools.cycle(measurings):
        begun = time.perf_counter()
        measurings[key]()
        taken[key].append(time.perf_counter() - begun)
        if begun > end and all(taken.values()):
            break
    frames = slice_.sequences * slice_.steps
    us = {key: 1e6 * sorted(each)[len(each) // 2] / frames for key, each in taken.items()}
    there = {name for _, name in us}
    by_library = {f"{name}_us": sum(us[part, name] for part in slice_.parts) for name in sorted(there)}
    ceiling = {part: min(us[part, name] for name in there) for part in slice_.parts}
    return by_library | {f"{part}_us": each for part, each in ceiling.items()} | {"ceiling_us": sum(ceiling.values())}


def main() -> None:
    say("ready")
    for model, sequences, steps, seconds in questions():
        spec = SERVED[model]
        torch.set_num_threads(threads_for(ServerSpec.from_json(dataclasses.asdict(spec))))
        say(round_of(Slice(spec, max(1, round(sequences)), max(1, round(steps))), seconds))


if __name__ == "__main__":
    main()

"""The networks of the GPU benchmark as a server has them and as torch.nn has them, on one device, and its clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from seqloom_server.engine.models.served_weights import ServedWeights, warm_up
from seqloom_server.engine.training.batch_programs import max_cells
from seqloom_server.nn.cuda_graphs.capture import device_seconds
from seqloom_server.nn.forward.network import Network, recurrent_module
from seqloom_server.nn.gradients.batch_gradients import Example, GradientRequest, gradients
from seqloom_server.nn.spec import GATES, ModelSpec

from benchmarks.harness.rounds import Result, interleaved

_HELD_BYTES = {"cuda": 8 << 30, "cpu": 1 << 30}  # of a training batch's activations


@dataclass
class GpuBench:
    """What the parts on the device need. specs: by title. counts: of sequences, each of `steps` steps. ceiling: flop/s
    of a large product of float32, measured; 0 before. size: of its matrices.
    """

    device: torch.device
    specs: dict[str, ModelSpec]
    counts: list[int]
    steps: int
    size: int
    rounds: int
    ceiling: float = 0.0
    served: dict[str, ServedWeights] = field(default_factory=dict)

    def weights(self, title: str) -> ServedWeights:
        """A model that was loaded as a server does it: warmed up, its graphs recorded."""
        if title not in self.served:
            self.served[title] = ServedWeights(title, 1, Network.create(self.specs[title], 0, self.device))
            warm_up(self.served[title])
        return self.served[title]

    def seconds(self, run: Callable[[], object]) -> float:
        """How long one run of it takes, by the device's clock if it has one; it has run before."""
        if self.device.type == "cuda":
            return device_seconds(run)
        run()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def interleaved(self, runs: dict[str, Callable[[], object]], flops: float) -> dict[str, list[Result]]:
        """Measures each in turn; flops: of the products of one run."""

        def measure(run: Callable[[], object]) -> Result:
            seconds = self.seconds(run)
            ceiling = {"ceiling_share": flops / seconds / self.ceiling} if self.ceiling else {}
            return {"device_ms": 1e3 * seconds, **ceiling}

        return interleaved({name: lambda run=run: measure(run) for name, run in runs.items()}, self.rounds)


def forward(weights: ServedWeights, count: int, steps: int) -> Callable[[], Any]:
    """Returns what runs `count` sequences through the recurrent layers as a slice does, by whichever way it chooses."""
    network, spec, sizes = weights.network, weights.network.spec, np.full(steps, count, np.int64)
    state = tuple(part[:, :1].expand(-1, count, -1).contiguous() for part in weights.states)
    shape = None if weights.rectangles is None else weights.rectangles.rectangle(sizes)
    cells = steps * count if shape is None else shape.cells
    rows = torch.randn(cells, spec.input_size, device=network.device)
    lengths = torch.full((count,), steps, device=network.device)
    batch_sizes = torch.from_numpy(sizes)

    def run() -> Any:
        with torch.inference_mode(), network.products:
            if shape is None:
                return network.advance(rows, batch_sizes, state)
            return weights.rectangles.advance(rows, shape, lengths, state)

    return run


def torch_module(network: Network) -> torch.nn.ModuleDict:
    """torch.nn's own modules of a network's weights, which cuDNN runs on a GPU."""
    parameters = {name: tensor.clone() for name, tensor in network.parameters().items()}
    output = torch.nn.Linear(network.spec.outputs_width, network.spec.output_size, device="meta")
    module = torch.nn.ModuleDict({"rnn": recurrent_module(network.spec, "meta"), "output": output})
    module.load_state_dict(parameters, assign=True)
    module["rnn"].flatten_parameters()
    return module.requires_grad_(True)


def examples_of(spec: ModelSpec, lengths: list[int]) -> list[Example]:
    """Sequences with a label for each step."""
    draw = np.random.default_rng(0)
    return [
        Example(
            draw.standard_normal((length, spec.input_size)).astype(spec.dtype),
            "cross_entropy",
            draw.integers(0, spec.output_size, length, "i4"),
            None,
            1.0,
            None,
            None,
        )
        for length in lengths
    ]


def differentiate(network: Network, examples: list[Example], *, total: bool, wants: GradientRequest) -> Any:
    """One batch of callers of one sequence each, to its end."""
    calls = [([example], wants) for example in examples]
    cells = max_cells(network.spec, _HELD_BYTES[network.device.type])
    program = gradients(network, calls, total=total, piece_flops=1e18, max_cells=cells)
    while True:
        try:
            next(program)
        except StopIteration as end:
            return end.value


def forward_flops(spec: ModelSpec, cells: int) -> float:
    """Of the products of the recurrent layers over so many steps."""
    gates, width, flops = GATES[spec.cell] * spec.hidden_size, spec.input_size, 0.0
    for _ in range(spec.num_layers):
        flops += 2.0 * gates * (width + spec.hidden_size) * cells
        width = spec.hidden_size
    return flops

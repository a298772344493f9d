"""One version of a model's weights on the device, with the hidden states of its sequences, and its warm-up."""

import time

import numpy as np
import torch

from seqloom_server.engine.core.slice_cost import SliceCost
from seqloom_server.engine.core.state_slots import DISCARD, SlotPool
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.cpu_threads import CORES, in_passing_thread
from seqloom_server.nn.cuda_graphs import masked_layers
from seqloom_server.nn.cuda_graphs.graph_layers import GraphLayers
from seqloom_server.nn.cuda_graphs.masked_layers import MaskedLayers
from seqloom_server.nn.files.fingerprint import fingerprint
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.forward.outputs import chunk_rows
from seqloom_server.nn.spec import ModelSpec

# The products of a smaller network end before a second thread could join, and the event loop needs that thread's core
# (docs/architecture.md has the numbers).
_THREADED_PARAMETERS = 500_000
_FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}  # a guess, until the first slices have run
_WARM_UP = ((1, 1), (1, 16), (8, 8), (64, 4))  # sequences, steps

States = tuple[torch.Tensor, ...]  # one [rows, N, width] per part of the model's state


def threads_for(spec: ModelSpec) -> int:
    """Returns the number of torch's threads that run a network of this size on the CPU."""
    return CORES if spec.parameter_count >= _THREADED_PARAMETERS else 1


class ServedWeights:
    """One version of one model's weights on the device, with the states of its sequences.

    states: [rows, capacity, width] per part of spec.state_shapes(); slot 0 stays zero, slot 1 takes discarded states.
    max_cells: the most rows of a slice, so that [rows, O] buffers stay bounded. threads: torch's, on the CPU.
    rectangles: runs padded batches of few shapes, as is faster on a GPU, or None. fingerprint: a digest of its numbers.
    """

    def __init__(self, model: str, version: int, network: Network, rectangles: MaskedLayers | None = None) -> None:
        self.model = model
        self.version = version
        self.network = network
        self.fingerprint = fingerprint(network)
        self.rectangles = rectangles
        self.slots = SlotPool(reserved=2)
        self.cost = SliceCost(2.0 * network.spec.parameter_count, _FLOPS_PER_SECOND[network.device.type])
        self.states = self._allocate(16)
        self.threads = threads_for(network.spec)
        self.whole_only = network.spec.bidirectional
        self.max_cells = chunk_rows(network.spec.output_size, self.states[0].element_size())

    def _allocate(self, capacity: int) -> States:
        spec = self.network.spec
        dtype = getattr(torch, spec.dtype)
        return tuple(
            torch.zeros((rows, capacity, width), dtype=dtype, device=self.network.device)
            for rows, width in spec.state_shapes().values()
        )

    @property
    def capacity(self) -> int:
        """The slots that the states hold."""
        return self.states[0].shape[1]

    def reserve(self) -> None:
        """Grows the states to hold all allocated slots. Where memory is short it raises what says so, unchanged."""
        capacity, needed = self.capacity, self.slots.capacity
        if needed > capacity:
            grown = self._grown(max(needed, 2 * capacity), needed)
            for new, old in zip(grown, self.states, strict=True):
                new[:, :capacity] = old
            self.states = grown

    def _grown(self, wanted: int, needed: int) -> States:
        """Allocates the wanted capacity, or where there is no memory for it the needed one."""
        if wanted > needed:
            try:
                return self._allocate(wanted)
            except Exception as error:
                if not is_memory_short(error):
                    raise
        return self._allocate(needed)

    def poison(self) -> None:
        """Fills all free slots with NaN, so that tests see states that outlive their sequence."""
        free = torch.tensor([DISCARD, *(slot for slot in self.slots.free if slot < self.capacity)])
        free = free.to(self.network.device)
        for state in self.states:
            state.index_fill_(1, free, float("nan"))

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.network.nbytes + self.state_bytes + (self.rectangles.nbytes if self.rectangles else 0)

    @property
    def state_bytes(self) -> int:
        return sum(state.nbytes for state in self.states)


def warm_up(weights: ServedWeights, threads: int = 0) -> None:
    """Runs zeros through the network: allocates memory before the first call, and observes the cost of slices.

    threads: torch's that slices will have, on the CPU; 0 for weights.threads.
    """
    in_passing_thread(threads or weights.threads, lambda: _warm_up(weights))


@torch.inference_mode()
def _warm_up(weights: ServedWeights) -> None:
    network, spec = weights.network, weights.network.spec
    if network.device.type == "cuda" and masked_layers.takes(spec):
        graphs = GraphLayers(network)
        graphs.prepare()
        weights.rectangles = graphs
    for count, steps in _WARM_UP:
        rows = torch.zeros((count * steps, spec.input_size), dtype=weights.states[0].dtype, device=network.device)
        batch_sizes = torch.from_numpy(np.full(steps, count, np.int64))
        for attempt in range(2):
            start = time.perf_counter()
            before = tuple(state[:, :1].expand(-1, count, -1).contiguous() for state in weights.states)
            with network.products:
                hidden, _ = network.advance(rows, batch_sizes, before)
                results = network.outputs(hidden, "labels", 0)
            for result in results:
                if result is not None:
                    result.cpu()
            if attempt:
                weights.cost.observe(steps, count * steps, time.perf_counter() - start)

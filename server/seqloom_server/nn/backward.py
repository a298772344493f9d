"""One group of sequences through the whole network, forward and back, in pieces.

Its rows are packed for the recurrence, and in the sequences' own order at the output layer, where a call's rows are
neighbours. What a layer holds is let go as soon as the layer below has what it needs.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch

from seqloom_server.nn import conv
from seqloom_server.nn.examples import Array, Example, Wants, stack_rows
from seqloom_server.nn.factors import Sink
from seqloom_server.nn.network import Network
from seqloom_server.nn.output_layer import OutputLayer
from seqloom_server.nn.pace import FLOPS_PER_ELEMENT, Pace, Pieces, product
from seqloom_server.nn.packed import Packing
from seqloom_server.nn.scan import ElmanScan, LayerWeights, Scan
from seqloom_server.nn.scan_gru import GruScan
from seqloom_server.nn.scan_lstm import LstmScan

States = tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Consumer:
    """Who takes factors: rows from `start` to `stop` of the group's sequences; None for all rows, in any order."""

    sink: Sink
    start: int | None = None
    stop: int | None = None


@dataclass(slots=True)
class Keeper:
    """Who takes dL/do of the rows from `start` to `stop`, [stop - start, O]."""

    start: int
    rows: Array


@dataclass(slots=True)
class GroupResult:
    """In the sequences' own order: losses [N] in float64, rows [rows, width], states [rows, N, width] per part.

    largest: no element of a parameter's gradient is larger, whoever's it is; NaN or infinite where that can't be said.
    """

    losses: Array
    largest: float = 0.0
    final_state: States | None = None
    initial_state: States | None = None
    inputs: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


@dataclass(slots=True)
class Group:
    """A batch of sequences on its way. wants: what any of their calls wants; parameters are the consumers'."""

    network: Network
    examples: list[Example]
    wants: Wants
    consumers: list[Consumer]
    keepers: list[Keeper]
    pace: Pace
    packing: Packing = field(init=False)
    _weights: dict[str, torch.Tensor] = field(init=False)
    _scans: list[list[Scan]] = field(init=False, default_factory=list)
    _rows: list[torch.Tensor] = field(init=False, default_factory=list)  # what each layer takes, packed
    _own: list[tuple[Sink, torch.Tensor | None]] = field(init=False)
    _norms: dict[str, torch.Tensor] = field(init=False, default_factory=dict)  # of factors
    _largest: torch.Tensor = field(init=False)

    def run(self) -> Generator[None, None, GroupResult]:
        """Runs it."""
        network, spec = self.network, self.network.spec
        dtype, device = getattr(torch, spec.dtype), network.device
        lengths = np.array([len(example.xs) for example in self.examples])
        packing = self.packing = Packing(lengths, device)
        self._weights = network.parameters()
        self._own = [
            (each.sink, None if each.start is None else packing.from_packed[each.start : each.stop])
            for each in self.consumers
        ]
        self._largest = torch.zeros((), dtype=dtype, device=device)
        initial = self._states([example.initial_state for example in self.examples])
        ordered = torch.empty(packing.cells, spec.input_size, dtype=dtype, device=device)
        stack_rows([example.xs for example in self.examples], ordered)
        rows = ordered.index_select(0, packing.to_packed)
        del ordered
        unfolding, columns, final = None, None, []
        if spec.conv_channels:
            unfolding = conv.Unfolding(packing.batch_sizes, spec.conv_width, device)
            source = unfolding.source(rows, initial["inputs"] if initial and "inputs" in initial else None)
            if spec.conv_width > 1:
                final = [unfolding.final_inputs(source)]
            rows, columns = yield from self._convolve(unfolding, source)
            del source
        for layer in range(spec.num_layers):
            rows = yield from self._forward(layer, rows, initial)
        top = rows.index_select(0, packing.from_packed)
        result = GroupResult(losses=np.empty(0))
        if self.wants.final_state:
            result.final_state = self._final_state(final)
        d_hidden = yield from self._output_layer(top, rows, result)
        del top, rows
        if d_hidden is None:
            return result
        gradient = self._states([example.final_state_gradient for example in self.examples])
        d_initial: list[list[torch.Tensor]] = []
        d_rows: torch.Tensor | None = d_hidden.index_select(0, packing.to_packed)
        del d_hidden
        for layer in reversed(range(spec.num_layers)):
            assert d_rows is not None
            d_rows = yield from self._backward(layer, d_rows, gradient, d_initial, result)
        result.largest = float(self._largest)
        d_parts = [torch.stack(rows) for rows in zip(*reversed(d_initial), strict=True)]
        if unfolding is not None and columns is not None and d_rows is not None:
            d_inputs = yield from self._convolve_back(unfolding, columns, d_rows, gradient)
            result.largest = float(self._largest)
            if d_inputs is not None:
                d_rows, before = d_inputs
                d_parts += [before] if spec.conv_width > 1 else []
        if self.wants.initial_state:
            result.initial_state = tuple(part.index_select(1, packing.ranks) for part in d_parts)
        if self.wants.inputs and d_rows is not None:
            result.inputs = d_rows.index_select(0, packing.from_packed)
        return result

    def _states(self, given: list[tuple[Array, ...] | None]) -> dict[str, torch.Tensor] | None:
        """States by part, [rows, N, width], sequences by rank; None where no sequence brings one."""
        if all(state is None for state in given):
            return None
        spec = self.network.spec
        parts = {}
        for part, (name, (rows, width)) in enumerate(spec.state_shapes().items()):
            zeros = np.zeros((rows, 1, width), spec.dtype)
            arrays = [zeros if state is None else state[part] for state in (given[n] for n in self.packing.order)]
            parts[name] = torch.from_numpy(np.concatenate(arrays, axis=1)).to(self.network.device)
        return parts

    def _put(self, name: str, rows: torch.Tensor) -> None:
        """Gives packed rows to all consumers."""
        self._norms[name] = torch.linalg.vector_norm(rows)
        for sink, own in self._own:
            sink.put(name, rows if own is None else rows.index_select(0, own))

    def _put_ordered(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Gives rows in the sequences' own order, from row `start` on, to whom they belong; copies, where kept."""
        self._norms[name] = torch.linalg.vector_norm(rows)
        for each in self.consumers:
            if each.start is None or each.stop is None:
                each.sink.put(name, rows)
            elif (low := max(start, each.start)) < (high := min(start + len(rows), each.stop)):
                each.sink.put(name, rows[low - start : high - start].clone())

    def _multiply(self, weight: str, bias: str, left: str, right: str) -> Pieces:
        self._bound(left, right)
        for sink, _ in self._own:
            yield from sink.multiply(weight, bias, left, right)

    def _bound(self, left: str, right: str) -> None:
        # by Cauchy and Schwarz, of all rows and of any part of them
        bound = self._norms[right].clamp(min=math.sqrt(self.packing.cells)) * self._norms[left]
        self._largest = self._largest + bound

    def _convolve(
        self, unfolding: conv.Unfolding, source: torch.Tensor
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor]]:
        """Returns (outputs [cells, C], columns [cells, D * width])."""
        weight, bias = self._weights["conv.weight"], self._weights["conv.bias"]
        channels, wide = weight.flatten(1).shape
        columns = source.new_empty(self.packing.cells, wide)
        outputs = source.new_empty(self.packing.cells, channels)
        flops = 2.0 * weight.numel() + FLOPS_PER_ELEMENT * wide
        block = self.pace.block(flops, self.packing.cells)
        for start in range(0, self.packing.cells, block):
            part = slice(start, min(start + block, self.packing.cells))
            columns[part] = unfolding.columns(source, part.start, part.stop)
            conv.forward(columns[part], weight, bias, out=outputs[part])
            if self.pace.due(flops * (part.stop - part.start)):
                yield
        self._rows.append(outputs)
        return outputs, columns

    def _forward(
        self, layer: int, rows: torch.Tensor, initial: dict[str, torch.Tensor] | None
    ) -> Generator[None, None, torch.Tensor]:
        """Runs a layer; returns its outputs, packed: [cells, H], or [cells, 2 H] of both directions."""
        packing, directions = self.packing, self.network.spec.directions
        if not layer:
            self._rows = [rows]
        scans, outputs = [], []
        for direction in range(directions):
            scan = self._scan(layer, direction)
            number = layer * directions + direction
            before = initial and tuple(part[number] for name, part in initial.items() if name != "inputs")
            yield from scan.forward(rows.index_select(0, packing.reverse) if direction else rows, before or None)
            after = scan.states[packing.count :]
            outputs.append(after.index_select(0, packing.reverse) if direction else after)
            scans.append(scan)
        self._scans.append(scans)
        result = torch.cat(outputs, 1) if directions == 2 else outputs[0]
        self._rows.append(result)
        return result

    def _scan(self, layer: int, direction: int) -> Scan:
        spec = self.network.spec
        suffix = f"l{layer}" + ("_reverse" if direction else "")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = LayerWeights(*(self._weights[f"rnn.{name}_{suffix}"] for name in names))
        if spec.cell == "elman":
            return ElmanScan(weights, self.packing, self.pace, relu=spec.activation == "relu")
        return (GruScan if spec.cell == "gru" else LstmScan)(weights, self.packing, self.pace)

    def _final_state(self, inputs: list[torch.Tensor]) -> States:
        scans = [scan for scans in self._scans for scan in scans]
        buffers = [[scan.states for scan in scans]]
        if scans[0].cells is not None:
            buffers.append([scan.cells for scan in scans if scan.cells is not None])
        last = self.packing.last.index_select(0, self.packing.ranks)
        parts = [torch.stack([buffer.index_select(0, last) for buffer in part]) for part in buffers]
        return (*parts, *(part.index_select(1, self.packing.ranks) for part in inputs))

    def _output_layer(
        self, top: torch.Tensor, rows: torch.Tensor, result: GroupResult
    ) -> Generator[None, None, torch.Tensor | None]:
        """Sets the losses; returns dL/ds of the top layer by the outputs alone, in the sequences' own order.

        None where nothing is to be differentiated.
        """
        weight, bias = self._weights["output.weight"], self._weights["output.bias"]
        back = bool(self.consumers) or self.wants.inputs or self.wants.initial_state or self.wants.hidden
        d_hidden = torch.empty_like(top) if back else None

        def use(start: int, d_o: torch.Tensor) -> Pieces:
            stop = start + len(d_o)
            for keeper in self.keepers:
                low, high = max(start, keeper.start), min(stop, keeper.start + len(keeper.rows))
                if low < high:
                    keeper.rows[low - keeper.start : high - keeper.start] = (
                        d_o[low - start : high - start].cpu().numpy()
                    )
            if d_hidden is None:
                return
            yield from product(self.pace, d_hidden[start:stop], d_o, weight)
            if self.consumers:
                self._put_ordered("output", start, d_o)
                self._put_ordered("hidden", start, top[start:stop])
                self._bound("output", "hidden")
                for each in self.consumers:
                    if each.start is None or each.stop is None or (each.start < stop and start < each.stop):
                        yield from each.sink.multiply("output.weight", "output.bias", "output", "hidden")
                    each.sink.release()

        wanted = d_hidden is not None or self.keepers
        layer = OutputLayer(top, weight, bias, self.examples, self.pace, use if wanted else None)
        result.losses = yield from layer.run()
        return d_hidden

    def _backward(
        self,
        layer: int,
        d_rows: torch.Tensor,
        gradient: dict[str, torch.Tensor] | None,
        d_initial: list[list[torch.Tensor]],
        result: GroupResult,
    ) -> Generator[None, None, torch.Tensor | None]:
        """Takes a layer back: d_rows is the gradient of its outputs; returns that of its inputs where it is of use."""
        spec, packing = self.network.spec, self.packing
        self._rows.pop()
        scans, rows, hidden = self._scans.pop(), self._rows[-1], []
        wanted = layer > 0 or spec.conv_channels > 0 or self.wants.inputs
        d_below = rows.new_empty(rows.shape) if wanted else None
        if self.consumers:
            self._put(f"rows_l{layer}", rows)
        for direction in reversed(range(spec.directions)):
            scan, number = scans.pop(), layer * spec.directions + direction
            d_states = scan.states.new_empty(scan.states.shape)
            d_states[: packing.count].zero_()
            part = d_rows[:, direction * spec.hidden_size : (direction + 1) * spec.hidden_size]
            after = d_states[packing.count :]
            if direction:
                torch.index_select(part, 0, packing.reverse, out=after)
            else:
                after.copy_(part)
            if gradient is not None:
                d_states.index_add_(0, packing.last, gradient["hidden"][number])
            d_cell = None
            if scan.cells is not None:
                d_cell = after.new_zeros(packing.count, spec.hidden_size)
                if gradient is not None:
                    d_cell.copy_(gradient["cell"][number])
            yield from scan.backward(d_states, d_cell)
            d_initial.append([d_states[: packing.count].clone(), *([] if d_cell is None else [d_cell])])
            if self.wants.hidden and layer == spec.num_layers - 1:
                hidden.append(after.index_select(0, packing.reverse) if direction else after)
            else:
                del d_states, after
            yield from self._parameters(layer, direction, scan, d_below)
            del scan
        for sink, _ in self._own:
            sink.release()
        if hidden:
            both = torch.cat(hidden[::-1], 1) if len(hidden) == 2 else hidden[0]
            result.hidden = both.index_select(0, packing.from_packed)
        return d_below

    def _parameters(self, layer: int, direction: int, scan: Scan, d_below: torch.Tensor | None) -> Pieces:
        """From a direction's deltas to the gradients of its weights and of the layer's inputs."""
        packing, suffix = self.packing, f"l{layer}" + ("_reverse" if direction else "")
        before, delta_in, delta_rec = packing.before(scan.states), scan.delta_in, scan.delta_rec
        one = delta_rec is delta_in
        if direction:
            delta_in = delta_in.index_select(0, packing.reverse)
            delta_rec = delta_in if one else delta_rec.index_select(0, packing.reverse)
            before = before.index_select(0, packing.reverse)
        if self.consumers:
            left = f"delta_{suffix}"
            right = left if one else f"delta_rec_{suffix}"
            self._put(left, delta_in)
            if not one:
                self._put(right, delta_rec)
            self._put(f"before_{suffix}", before)
            yield from self._multiply(f"rnn.weight_ih_{suffix}", f"rnn.bias_ih_{suffix}", left, f"rows_l{layer}")
            yield from self._multiply(f"rnn.weight_hh_{suffix}", f"rnn.bias_hh_{suffix}", right, f"before_{suffix}")
        if d_below is not None:
            add = direction < self.network.spec.directions - 1  # the reverse one came first
            yield from product(self.pace, d_below, delta_in, scan.weights.u, add=add)

    def _convolve_back(
        self,
        unfolding: conv.Unfolding,
        columns: torch.Tensor,
        d_outputs: torch.Tensor,
        gradient: dict[str, torch.Tensor] | None,
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor] | None]:
        """From the gradient of the convolution's outputs to its weights', and to inputs' and state's, if wanted."""
        weight = self._weights["conv.weight"].flatten(1)
        delta = d_outputs.mul_(self._rows.pop().sign())
        if self.consumers:
            self._put("conv", delta)
            self._put("columns", columns)
            yield from self._multiply("conv.weight", "conv.bias", "conv", "columns")
        for sink, _ in self._own:
            sink.release()
        if not (self.wants.inputs or self.wants.initial_state):
            return None
        before = (unfolding.width - 1) * self.packing.count
        d_source = delta.new_zeros(before + self.packing.cells, self.network.spec.input_size)
        flops = 2.0 * weight.numel() + FLOPS_PER_ELEMENT * weight.shape[1]
        block = self.pace.block(flops, len(delta))
        for start in range(0, len(delta), block):
            part = delta[start : start + block]
            unfolding.fold_(d_source, part @ weight, start)
            if self.pace.due(flops * len(part)):
                yield
        if gradient is not None and unfolding.width > 1:
            unfolding.fold_final_(d_source, gradient["inputs"])
        return unfolding.split(d_source)

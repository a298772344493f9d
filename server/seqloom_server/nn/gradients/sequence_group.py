"""A group of sequences through the whole network, forward and back, in bounded pieces of work.

Its rows are packed for the recurrence, and in the sequences' own order at the output layer, where a call's rows are
neighbours. A layer's activations are freed as soon as its way back is done.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.conv_backward import ConvBackward
from seqloom_server.nn.gradients.factor_routing import FactorRoute, FactorRoutes
from seqloom_server.nn.gradients.gradient_factors import FactorSink
from seqloom_server.nn.losses.output_layer import OutputLayer
from seqloom_server.nn.losses.training_example import Array, Example, GradientRequest, stack_rows
from seqloom_server.nn.recurrence.gru import GruScan
from seqloom_server.nn.recurrence.layer_scan import ElmanScan, LayerScan, LayerWeights
from seqloom_server.nn.recurrence.lstm import LstmScan
from seqloom_server.nn.recurrence.packed_rows import PackedRows
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, YieldBudget, product

States = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class GroupPart:
    """One call's sequences in a group, neighbours there. sequences, rows: their places, in the sequences' own order.

    sink: takes the factors of these rows; None where the call does not ask for gradients of parameters. outputs: gets
    dL/do of the rows, [steps, O]; None where the call does not ask for it.
    """

    examples: list[Example]
    request: GradientRequest
    sequences: slice
    rows: slice
    sink: FactorSink | None
    outputs: Array | None


@dataclass(slots=True)
class GroupResult:
    """In the sequences' own order: losses [N] in float64, rows [rows, width], states [rows, N, width] per part.

    largest: no element of any call's parameter gradients is larger; NaN or infinite where there is no such bound.
    """

    losses: Array
    largest: float = 0.0
    final_state: States | None = None
    initial_state: States | None = None
    inputs: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class SequenceGroup:
    """The sequences of some calls on their way through the network and back. total: takes the factors of all rows."""

    def __init__(self, network: Network, parts: list[GroupPart], total: FactorSink | None, budget: YieldBudget) -> None:
        self._spec, self._device = network.spec, network.device
        self._weights = network.parameters()
        self._budget = budget
        self._examples = [example for part in parts for example in part.examples]
        self._request = GradientRequest(
            inputs=any(part.request.inputs for part in parts),
            initial_state=any(part.request.initial_state for part in parts),
            hidden=any(part.request.hidden for part in parts),
            final_state=any(part.request.final_state for part in parts),
        )
        self._outputs = [(part.rows.start, part.outputs) for part in parts if part.outputs is not None]
        self._packed = PackedRows(np.array([len(example.xs) for example in self._examples]), network.device)
        routes = [] if total is None else [FactorRoute(total)]
        routes += [FactorRoute(part.sink, part.rows.start, part.rows.stop) for part in parts if part.sink is not None]
        self._routes = FactorRoutes(routes, self._packed)
        self._scans: list[list[LayerScan]] = []  # of each layer
        self._rows: list[torch.Tensor] = []  # what each layer takes, packed, and the last one's outputs

    def run(self) -> Generator[None, None, GroupResult]:
        """Runs the sequences forward and, where anything is to be differentiated, back."""
        spec, packed, request = self._spec, self._packed, self._request
        before = self._states([example.initial_state for example in self._examples])
        ordered = torch.empty(packed.cells, spec.input_size, dtype=getattr(torch, spec.dtype), device=self._device)
        stack_rows([example.xs for example in self._examples], ordered)
        if self._budget.due(FLOPS_PER_ELEMENT * ordered.numel()):
            yield
        rows = ordered.index_select(0, packed.to_packed)
        del ordered
        front = None
        if spec.conv_channels:
            front = ConvBackward(self._weights["conv.weight"], self._weights["conv.bias"], packed, self._budget)
            rows = yield from front.forward(rows, before.get("inputs"))
        self._rows.append(rows)
        for layer in range(spec.num_layers):
            yield from self._forward(layer, before)
        del rows
        result = GroupResult(losses=np.empty(0))
        if request.final_state:
            result.final_state = self._final_state(front)
        d_hidden = yield from self._output_layer(result)
        if d_hidden is None:
            return result
        after = self._states([example.final_state_gradient for example in self._examples])
        d_initial: list[list[torch.Tensor]] = []
        d_rows: torch.Tensor | None = d_hidden.index_select(0, packed.to_packed)
        if self._budget.due(FLOPS_PER_ELEMENT * d_hidden.numel()):
            yield
        del d_hidden
        for layer in reversed(range(spec.num_layers)):
            assert d_rows is not None
            d_rows = yield from self._backward(layer, d_rows, after, d_initial, result)
        d_parts = [torch.stack(each) for each in zip(*reversed(d_initial), strict=True)]
        if front is not None:
            assert d_rows is not None
            wanted = request.inputs or request.initial_state
            d_source = yield from front.backward(d_rows, after.get("inputs"), self._routes, wanted=wanted)
            if d_source is not None:
                d_rows, d_inputs = d_source
                d_parts += [d_inputs] if spec.conv_width > 1 else []
        result.largest = self._routes.largest
        if request.initial_state:
            result.initial_state = tuple(part.index_select(1, packed.ranks) for part in d_parts)
        if request.inputs and d_rows is not None:
            result.inputs = d_rows.index_select(0, packed.from_packed)
        return result

    def _states(self, given: list[tuple[Array, ...] | None]) -> dict[str, torch.Tensor]:
        """States by part, [rows, N, width], sequences by rank; empty where no sequence brings one."""
        parts: dict[str, torch.Tensor] = {}
        if all(state is None for state in given):
            return parts
        for part, (name, (rows, width)) in enumerate(self._spec.state_shapes().items()):
            zeros = np.zeros((rows, 1, width), self._spec.dtype)
            ranked = (given[n] for n in self._packed.order)
            arrays = [zeros if state is None else state[part] for state in ranked]
            parts[name] = torch.from_numpy(np.concatenate(arrays, axis=1)).to(self._device)
        return parts

    def _final_state(self, front: ConvBackward | None) -> States:
        scans = [scan for scans in self._scans for scan in scans]
        buffers = [[scan.states for scan in scans]]
        if self._spec.cell == "lstm":
            buffers.append([scan.cells for scan in scans if scan.cells is not None])
        last = self._packed.last.index_select(0, self._packed.ranks)
        parts = [torch.stack([buffer.index_select(0, last) for buffer in part]) for part in buffers]
        if front is not None and front.final_inputs is not None:
            parts.append(front.final_inputs.index_select(1, self._packed.ranks))
        return tuple(parts)

    def _forward(self, layer: int, before: Mapping[str, torch.Tensor]) -> Pieces:
        """Runs a layer; its outputs are packed rows, [cells, H], or [cells, 2 H] of both directions."""
        packed, directions = self._packed, self._spec.directions
        scans, outputs = [], []
        for direction in range(directions):
            scan, number = self._scan(layer, direction), layer * directions + direction
            initial = tuple(part[number] for name, part in before.items() if name != "inputs") or None
            rows = self._rows[-1]
            yield from scan.forward(rows.index_select(0, packed.reverse) if direction else rows, initial)
            states = scan.states[packed.count :]
            outputs.append(states.index_select(0, packed.reverse) if direction else states)
            scans.append(scan)
        self._scans.append(scans)
        self._rows.append(torch.cat(outputs, 1) if directions == 2 else outputs[0])

    def _scan(self, layer: int, direction: int) -> LayerScan:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = LayerWeights(*(self._weights[f"rnn.{name}_{_suffix(layer, direction)}"] for name in names))
        if self._spec.cell == "elman":
            return ElmanScan(weights, self._packed, self._budget, relu=self._spec.activation == "relu")
        return (GruScan if self._spec.cell == "gru" else LstmScan)(weights, self._packed, self._budget)

    def _output_layer(self, result: GroupResult) -> Generator[None, None, torch.Tensor | None]:
        """Sets the losses; returns dL/ds of the top layer by the outputs alone, in the sequences' own order.

        None where nothing is to be differentiated.
        """
        weight, bias = self._weights["output.weight"], self._weights["output.bias"]
        top = self._rows[-1].index_select(0, self._packed.from_packed)
        request = self._request
        back = self._routes or request.inputs or request.initial_state or request.hidden
        d_hidden = torch.empty_like(top) if back else None

        def use(start: int, d_o: torch.Tensor) -> Pieces:
            stop = start + len(d_o)
            for first, rows in self._outputs:
                low, high = max(start, first), min(stop, first + len(rows))
                if low < high:
                    rows[low - first : high - first] = d_o[low - start : high - start].cpu().numpy()
            if d_hidden is None:
                return
            yield from product(self._budget, d_hidden[start:stop], d_o, weight)
            factors = ("output", d_o), ("hidden", top[start:stop])
            yield from self._routes.multiply_chunk("output.weight", "output.bias", *factors, start)

        wanted = d_hidden is not None or self._outputs
        layer = OutputLayer(top, weight, bias, self._examples, self._budget, use if wanted else None)
        result.losses = yield from layer.run()
        return d_hidden

    def _backward(
        self,
        layer: int,
        d_rows: torch.Tensor,
        after: Mapping[str, torch.Tensor],
        d_initial: list[list[torch.Tensor]],
        result: GroupResult,
    ) -> Generator[None, None, torch.Tensor | None]:
        """Takes a layer back: d_rows is the gradient of its outputs; returns that of its inputs where it is of use."""
        spec, packed = self._spec, self._packed
        self._rows.pop()
        scans, rows, hidden = self._scans.pop(), self._rows[-1], []
        wanted = layer > 0 or spec.conv_channels > 0 or self._request.inputs
        d_below = torch.empty_like(rows) if wanted else None
        self._routes.put(f"rows_l{layer}", rows)
        for direction in reversed(range(spec.directions)):
            scan, number = scans.pop(), layer * spec.directions + direction
            d_states = torch.empty_like(scan.states)
            d_states[: packed.count].zero_()
            part = d_rows[:, direction * spec.hidden_size : (direction + 1) * spec.hidden_size]
            d_outputs = d_states[packed.count :]
            if direction:
                torch.index_select(part, 0, packed.reverse, out=d_outputs)
            else:
                d_outputs.copy_(part)
            if self._budget.due(FLOPS_PER_ELEMENT * d_outputs.numel()):
                yield
            if after:
                d_states.index_add_(0, packed.last, after["hidden"][number])
            d_cell = None
            if scan.cells is not None:
                d_cell = d_outputs.new_zeros(packed.count, spec.hidden_size)
                if after:
                    d_cell.copy_(after["cell"][number])
            yield from scan.backward(d_states, d_cell)
            d_initial.append([d_states[: packed.count].clone(), *([] if d_cell is None else [d_cell])])
            if self._request.hidden and layer == spec.num_layers - 1:
                hidden.append(d_outputs.index_select(0, packed.reverse) if direction else d_outputs)
            del d_states, d_outputs
            yield from self._parameters(layer, direction, scan, d_below)
            del scan
        self._routes.release()
        if hidden:
            both = torch.cat(hidden[::-1], 1) if len(hidden) == 2 else hidden[0]
            result.hidden = both.index_select(0, packed.from_packed)
        return d_below

    def _parameters(self, layer: int, direction: int, scan: LayerScan, d_below: torch.Tensor | None) -> Pieces:
        """From a direction's deltas to the gradients of its weights and of the layer's inputs."""
        routes, suffix = self._routes, _suffix(layer, direction)
        delta_in, delta_rec = scan.delta_in, scan.delta_rec
        one = delta_rec is delta_in
        if direction:
            reverse = self._packed.reverse
            delta_in = delta_in.index_select(0, reverse)
            delta_rec = delta_in if one else delta_rec.index_select(0, reverse)
        if routes:
            before = self._packed.before(scan.states)
            left, right = f"delta_{suffix}", f"delta_{suffix}" if one else f"delta_rec_{suffix}"
            routes.put(left, delta_in)
            if not one:
                routes.put(right, delta_rec)
            routes.put(f"before_{suffix}", before.index_select(0, reverse) if direction else before)
            yield from routes.multiply(f"rnn.weight_ih_{suffix}", f"rnn.bias_ih_{suffix}", left, f"rows_l{layer}")
            yield from routes.multiply(f"rnn.weight_hh_{suffix}", f"rnn.bias_hh_{suffix}", right, f"before_{suffix}")
        if d_below is not None:
            add = direction < self._spec.directions - 1  # the reverse one came first
            yield from product(self._budget, d_below, delta_in, scan.weights.u, add=add)


def _suffix(layer: int, direction: int) -> str:
    return f"l{layer}" + ("_reverse" if direction else "")

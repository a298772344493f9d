"""Gradients of many callers' sequences out of one shared batch, each caller's own, or their sum, in bounded pieces."""

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.factor_routing import FactorRoute
from seqloom_server.nn.gradients.gradient_factors import Dense, Factors, Product, factor_width
from seqloom_server.nn.gradients.sequence_group import GroupResult, OutputGradientBuffer, SequenceGroup
from seqloom_server.nn.losses.training_example import Array, Example, GradientRequest, LossKind, ParameterForm
from seqloom_server.nn.recurrence.yield_points import YieldBudget

__all__ = [
    "BatchGradients",
    "CallGradients",
    "Example",
    "GradientRequest",
    "LossKind",
    "ParameterForm",
    "Product",
    "gradients",
]

Call = tuple[list[Example], GradientRequest]
Total = dict[str, torch.Tensor]


@dataclass(slots=True)
class CallGradients:
    """What one call gets, in the order of its sequences; None where it did not want it.

    losses: [N] float64. overflow: "", or what was no finite number; nothing else is valid then. final_state,
    initial_state: [rows, N, width] per part of the state. inputs, outputs, hidden: the rows of all its sequences.
    dense: by parameter.
    factors: [steps, width] each, with the products that make every parameter's gradient of them. norms: by parameter.
    """

    losses: Array
    overflow: str = ""
    final_state: tuple[Array, ...] | None = None
    initial_state: tuple[Array, ...] | None = None
    inputs: Array | None = None
    outputs: Array | None = None
    hidden: Array | None = None
    dense: dict[str, Array] | None = None
    factors: list[Array] | None = None
    products: list[Product] = dataclasses.field(default_factory=list)
    norms: dict[str, float] | None = None


@dataclass(slots=True)
class BatchGradients:
    """calls: in the order given. total: the sum over the calls that did not overflow, None where all did or it was not
    wanted.
    """

    calls: list[CallGradients]
    total: Total | None


@torch.inference_mode()
def gradients(
    network: Network, calls: list[Call], *, total: bool, piece_flops: float, max_cells: int
) -> Generator[None, None, BatchGradients]:
    """Differentiates every call's sequences, at least one of at least one step; total: also sums over all calls.

    Each `next` does about `piece_flops` of work. Sequences of more than `max_cells` steps together are run in groups,
    one after the other; a group has at least one sequence. Numbers depend on the arguments alone.
    """
    order = sorted(range(len(calls)), key=lambda n: str(calls[n][0][0].loss))  # chunks of outputs have one loss
    ordered = [calls[n] for n in order]
    found, summed, fine = yield from _pass(network, ordered, total, piece_flops, max_cells)
    fine_sum = fine or summed is None or _finite(summed)
    for number, call in enumerate(ordered):
        if not found[number].overflow and not (fine_sum and _is_finite(found[number], fine)):
            found[number].overflow = yield from _overflow(network, call, total, piece_flops, max_cells)
    left = [call for call, result in zip(ordered, found, strict=True) if not result.overflow]
    if total and left and not (fine_sum and len(left) == len(calls)):
        # once more without those that overflowed: what is no finite number would stay in the sum
        again = [(examples, GradientRequest()) for examples, _ in left]
        _, summed, _ = yield from _pass(network, again, True, piece_flops, max_cells)
        if summed is not None and not _finite(summed):
            for result in found:
                result.overflow = result.overflow or "the sum of all callers' gradients"
            left = []
    results = [result for _, result in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
    return BatchGradients(results, summed if left else None)


class _Collected:
    """One call's results on their way, over all groups."""

    def __init__(self, network: Network, call: Call, budget: YieldBudget) -> None:
        self.examples, self.request = call
        spec = network.spec
        steps = sum(len(example.xs) for example in self.examples)
        self.losses: list[Array] = []
        self.states: dict[str, list[tuple[Array, ...]]] = {"final_state": [], "initial_state": []}
        self.rows: dict[str, list[Array]] = {"inputs": [], "hidden": []}
        self.outputs = np.empty((steps, spec.output_size), spec.dtype) if self.request.outputs else None
        self.done = 0
        form, shapes = self.request.parameters, spec.parameter_shapes()
        factored = steps * factor_width(spec) < spec.parameter_count
        self.sink: Dense | Factors | None = None
        if form in ("smallest", "norms") and factored:
            self.sink = Factors(shapes)
        elif form != "none":
            self.sink = Dense(shapes, budget)

    def take(self, result: GroupResult, sequences: slice, rows: slice) -> None:
        """Takes the call's part of a group's results."""
        self.losses.append(result.losses[sequences])
        for name, wanted in (("final_state", self.request.final_state), ("initial_state", self.request.initial_state)):
            if wanted:
                parts = getattr(result, name)
                self.states[name].append(tuple(part[:, sequences].cpu().numpy().copy() for part in parts))
        for name, wanted in (("inputs", self.request.inputs), ("hidden", self.request.hidden)):
            if wanted:
                self.rows[name].append(getattr(result, name)[rows].cpu().numpy().copy())

    def result(self) -> CallGradients:
        """Returns them, all groups joined."""
        losses = np.concatenate(self.losses) if self.losses else np.empty(0)
        result = CallGradients(losses, outputs=self.outputs)
        for name, states in self.states.items():
            if states:
                setattr(result, name, tuple(np.concatenate(parts, axis=1) for parts in zip(*states, strict=True)))
        for name, rows in self.rows.items():
            if rows:
                setattr(result, name, rows[0] if len(rows) == 1 else np.concatenate(rows))
        if self.sink is not None and self.request.parameters == "norms":
            result.norms = self.sink.norms()
        elif isinstance(self.sink, Factors):
            result.factors, result.products = self.sink.result()
        elif self.sink is not None:
            result.dense = {name: tensor.cpu().numpy() for name, tensor in self.sink.result().items()}
        return result


def _pass(
    network: Network, calls: list[Call], total: bool, piece_flops: float, max_cells: int
) -> Generator[None, None, tuple[list[CallGradients], Total | None, bool]]:
    """All calls once, whatever overflows; infinite losses are told, nothing else is looked at.

    Also returns the sum, and whether all gradients of parameters are finite for certain.
    """
    budget = YieldBudget(piece_flops)
    collected = [_Collected(network, call, budget) for call in calls]
    summed = Dense(network.spec.parameter_shapes(), budget) if total else None
    largest = 0.0
    for members in _groups(calls, max_cells):
        routes = [] if summed is None else [FactorRoute(summed)]
        buffers: list[OutputGradientBuffer] = []
        spans: list[tuple[_Collected, slice, slice]] = []
        sequences = rows = 0
        for number, examples in members:
            each = collected[number]
            steps = sum(len(example.xs) for example in examples)
            if each.sink is not None:
                routes.append(FactorRoute(each.sink, rows, rows + steps))
            if each.outputs is not None:
                buffers.append(OutputGradientBuffer(rows, each.outputs[each.done : each.done + steps]))
            each.done += steps
            spans.append((each, slice(sequences, sequences + len(examples)), slice(rows, rows + steps)))
            sequences, rows = sequences + len(examples), rows + steps
        request = GradientRequest(
            inputs=any(each.request.inputs for each, _, _ in spans),
            initial_state=any(each.request.initial_state for each, _, _ in spans),
            hidden=any(each.request.hidden for each, _, _ in spans),
            final_state=any(each.request.final_state for each, _, _ in spans),
        )
        examples = [example for _, own in members for example in own]
        result = yield from SequenceGroup(network, examples, request, routes, buffers, budget).run()
        largest += result.largest
        for each, own_sequences, own_rows in spans:
            each.take(result, own_sequences, own_rows)
    results = [each.result() for each in collected]
    for call in results:
        infinite = np.flatnonzero(~np.isfinite(call.losses))
        if len(infinite):
            call.overflow = f"the loss of sequence {infinite[0]}"
        elif not math.isfinite(call.losses.sum()):
            call.overflow = "the sum of the losses"
    fine = largest < torch.finfo(getattr(torch, network.spec.dtype)).max
    return results, None if summed is None else summed.result(), fine


def _groups(calls: list[Call], max_cells: int) -> Generator[list[tuple[int, list[Example]]], None, None]:
    """Cuts all sequences, in their order, where they would have more steps together; gives (call, sequences) lists."""
    group: list[tuple[int, list[Example]]] = []
    cells = 0
    for number, (examples, _) in enumerate(calls):
        for example in examples:
            if group and cells + len(example.xs) > max_cells:
                yield group
                group, cells = [], 0
            if not group or group[-1][0] != number:
                group.append((number, []))
            group[-1][1].append(example)
            cells += len(example.xs)
    if group:
        yield group


def _finite(tensors: Total) -> bool:
    # a norm, which reads once, overflows a little before its elements do: then they are looked at
    return all(
        math.isfinite(float(torch.linalg.vector_norm(tensor))) or bool(tensor.isfinite().all())
        for tensor in tensors.values()
    )


def _is_finite(call: CallGradients, fine: bool) -> bool:
    """Whether a call's results are finite for certain. fine: parameters' gradients are."""
    if not fine and (call.factors or not all(map(math.isfinite, (call.norms or {}).values()))):
        return False  # only products would tell
    return all(np.isfinite(array).all() for array in _arrays(call, with_parameters=not fine).values())


def _arrays(call: CallGradients, with_parameters: bool) -> dict[str, Array]:
    named: dict[str, Array | None] = {"the inputs": call.inputs, "the outputs": call.outputs}
    named["the hidden states"] = call.hidden
    named |= {f"the initial state, part {part}": array for part, array in enumerate(call.initial_state or ())}
    named |= dict((call.dense if with_parameters else None) or {})
    return {name: array for name, array in named.items() if array is not None}


def _overflow(
    network: Network, call: Call, total: bool, piece_flops: float, max_cells: int
) -> Generator[None, None, str]:
    """Runs a call alone; returns what of it is no finite number, "" where all is."""
    examples, request = call
    dense = total or request.parameters != "none"
    request = dataclasses.replace(request, parameters="dense" if dense else "none")
    (result,), _, _ = yield from _pass(network, [(examples, request)], False, piece_flops, max_cells)
    infinite = (name for name, array in _arrays(result, True).items() if not np.isfinite(array).all())
    return result.overflow or next((f"the gradient of {name}" for name in infinite), "")

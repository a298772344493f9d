"""One call's share of a batch: where its sequences lie in each group, and what it gets of the groups' results."""

from dataclasses import dataclass, field

import numpy as np

from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.gradient_factors import Dense, Factors, Product, factor_width
from seqloom_server.nn.gradients.sequence_group import GroupPart, GroupResult
from seqloom_server.nn.losses.training_example import Array, Example, GradientCall
from seqloom_server.nn.recurrence.yield_points import YieldBudget


@dataclass(slots=True)
class CallGradients:
    """The gradients of one call, in the order of its sequences; None where it did not ask for them.

    losses: [N] float64. overflow: "", or the name of what is not finite; nothing else is valid then. final_state,
    initial_state: [rows, N, width] per part of the state. inputs, outputs, hidden: the rows of all its sequences.
    dense: by parameter.
    factors: [steps, width] each, and the products of them that are the parameters' gradients. norms: by parameter.
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
    products: list[Product] = field(default_factory=list)
    norms: dict[str, float] | None = None


class CallShare:
    """A call on its way through the groups of a batch, in their order."""

    def __init__(self, network: Network, call: GradientCall, budget: YieldBudget) -> None:
        self.examples, self.request = call.examples, call.request
        spec = network.spec
        steps = sum(len(example.xs) for example in self.examples)
        self._losses: list[Array] = []
        self._states: dict[str, list[tuple[Array, ...]]] = {"final_state": [], "initial_state": []}
        self._rows: dict[str, list[Array]] = {"inputs": [], "hidden": []}
        self._outputs = np.empty((steps, spec.output_size), spec.dtype) if self.request.outputs else None
        self._steps_placed = 0
        form, shapes = self.request.parameters, spec.parameter_shapes()
        self._sink: Dense | Factors | None = None
        if form in ("smallest", "norms") and steps * factor_width(spec) < spec.parameter_count:
            self._sink = Factors(shapes)
        elif form != "none":
            self._sink = Dense(shapes, budget)

    def place(self, examples: list[Example], first_sequence: int, first_row: int) -> GroupPart:
        """Places the next of its sequences in a group, behind so many sequences and rows of other calls."""
        steps = sum(len(example.xs) for example in examples)
        placed, self._steps_placed = self._steps_placed, self._steps_placed + steps
        return GroupPart(
            examples,
            self.request,
            sequences=slice(first_sequence, first_sequence + len(examples)),
            rows=slice(first_row, first_row + steps),
            sink=self._sink,
            outputs=None if self._outputs is None else self._outputs[placed : placed + steps],
        )

    def take(self, result: GroupResult, part: GroupPart) -> None:
        """Copies its part of a group's results."""
        self._losses.append(result.losses[part.sequences])
        for name, states in self._states.items():
            if getattr(self.request, name):
                group = getattr(result, name)
                states.append(tuple(each[:, part.sequences].cpu().numpy().copy() for each in group))
        for name, rows in self._rows.items():
            if getattr(self.request, name):
                rows.append(getattr(result, name)[part.rows].cpu().numpy().copy())

    def gradients(self) -> CallGradients:
        """Returns the results of all groups, joined."""
        losses = np.concatenate(self._losses) if self._losses else np.empty(0)
        joined = CallGradients(losses, outputs=self._outputs)
        for name, states in self._states.items():
            if states:
                setattr(joined, name, tuple(np.concatenate(parts, axis=1) for parts in zip(*states, strict=True)))
        for name, rows in self._rows.items():
            if rows:
                setattr(joined, name, rows[0] if len(rows) == 1 else np.concatenate(rows))
        if self._sink is not None and self.request.parameters == "norms":
            joined.norms = self._sink.norms()
        elif isinstance(self._sink, Factors):
            joined.factors, joined.products = self._sink.result()
        elif self._sink is not None:
            joined.dense = {name: tensor.cpu().numpy() for name, tensor in self._sink.result().items()}
        return joined

"""Gradients of many callers' sequences out of one shared batch, each caller's own, or their sum, in bounded pieces.

A call's way: its CallShare places its sequences in groups of bounded memory, a SequenceGroup takes each group through
the network and back, and the share joins what its call gets. Calls that overflow are left out of the sum.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients import overflow
from seqloom_server.nn.gradients.call_share import CallGradients, CallShare
from seqloom_server.nn.gradients.gradient_factors import Dense
from seqloom_server.nn.gradients.sequence_group import GroupPart, SequenceGroup
from seqloom_server.nn.losses.training_example import Example, GradientCall, GradientRequest
from seqloom_server.nn.recurrence.yield_points import YieldBudget

Total = dict[str, torch.Tensor]


@dataclass(slots=True)
class BatchGradients:
    """calls: in the order given. total: the sum over the calls that did not overflow; None where all did, or where it
    was not asked for.
    """

    calls: list[CallGradients]
    total: Total | None


@torch.inference_mode()
def gradients(
    network: Network, calls: Sequence[GradientCall], *, total: bool, piece_flops: float, max_cells: int
) -> Generator[None, None, BatchGradients]:
    """Differentiates every call's sequences, at least one of at least one step; total: also sums over all calls.

    Each `next` does about `piece_flops` of work. Sequences of more than `max_cells` steps together are run in groups,
    one after the other; a group has at least one sequence. Numbers depend on the arguments alone.
    """
    one_pass = _Pass(network, piece_flops, max_cells)
    order = sorted(range(len(calls)), key=lambda n: str(calls[n].examples[0].loss))  # chunks of outputs have one loss
    ordered = [calls[n] for n in order]
    found, summed, parameters_are_finite = yield from one_pass.run(ordered, total=total)
    sum_is_finite = parameters_are_finite or summed is None or overflow.are_finite(summed.values())
    for call, result in zip(ordered, found, strict=True):
        if result.overflow:
            continue
        if not (sum_is_finite and overflow.is_finite(result, parameters_are=parameters_are_finite)):
            result.overflow = yield from one_pass.overflow_of(call, total=total)
    left = [call for call, result in zip(ordered, found, strict=True) if not result.overflow]
    if total and left and not (sum_is_finite and len(left) == len(calls)):
        # once more without those that overflowed: what is not finite would stay in the sum
        _, summed, _ = yield from one_pass.run([_Call(call.examples, GradientRequest()) for call in left], total=True)
        if summed is not None and not overflow.are_finite(summed.values()):
            for result in found:
                result.overflow = result.overflow or "the sum of all callers' gradients"
            left = []
    results = [result for _, result in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
    return BatchGradients(results, summed if left else None)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is run again, for something else than its caller asked for."""

    examples: list[Example]
    request: GradientRequest


@dataclass(frozen=True, slots=True)
class _Pass:
    """All of some calls' sequences through the network and back once, whatever overflows."""

    network: Network
    piece_flops: float
    max_cells: int

    def run(
        self, calls: Sequence[GradientCall], *, total: bool
    ) -> Generator[None, None, tuple[list[CallGradients], Total | None, bool]]:
        """Returns each call's gradients, of which only the losses were looked at, the sum, and whether all gradients of
        parameters are finite for certain."""
        network = self.network
        budget = YieldBudget(self.piece_flops)
        shares = [CallShare(network, call, budget) for call in calls]
        summed = Dense(network.spec.parameter_shapes(), budget) if total else None
        largest = 0.0
        for placed in self._groups(shares):
            result = yield from SequenceGroup(network, [part for _, part in placed], summed, budget).run()
            largest += result.largest
            for share, part in placed:
                share.take(result, part)
        results = [share.gradients() for share in shares]
        for each in results:
            each.overflow = overflow.of_losses(each.losses)
        finite = largest < torch.finfo(getattr(torch, network.spec.dtype)).max
        return results, None if summed is None else summed.result(), finite

    def overflow_of(self, call: GradientCall, *, total: bool) -> Generator[None, None, str]:
        """Runs a call alone; returns what of it is not finite, "" where all is. total: it is part of a sum."""
        dense = total or call.request.parameters != "none"
        alone = _Call(call.examples, replace(call.request, parameters="dense" if dense else "none"))
        (result,), _, _ = yield from self.run([alone], total=False)
        return result.overflow or overflow.of_gradients(result)

    def _groups(self, shares: list[CallShare]) -> Iterator[list[tuple[CallShare, GroupPart]]]:
        """Cuts all sequences, in their order, where they would have more steps together than a group may."""
        group: list[tuple[CallShare, list[Example]]] = []
        cells = 0
        for share in shares:
            for example in share.examples:
                if group and cells + len(example.xs) > self.max_cells:
                    yield _placed(group)
                    group, cells = [], 0
                if not group or group[-1][0] is not share:
                    group.append((share, []))
                group[-1][1].append(example)
                cells += len(example.xs)
        if group:
            yield _placed(group)


def _placed(group: list[tuple[CallShare, list[Example]]]) -> list[tuple[CallShare, GroupPart]]:
    placed: list[tuple[CallShare, GroupPart]] = []
    sequences = rows = 0
    for share, examples in group:
        placed.append((share, share.place(examples, sequences, rows)))
        sequences, rows = sequences + len(examples), placed[-1][1].rows.stop
    return placed

"""Optimizer steps in pieces of bounded work, between which the device can run other work: torch.optim over blocks.

It calls the functions behind torch.optim's classes, which are the same numbers: the first object of such a class
imports torch's compiler, for a second or so.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from seqloom_server.nn.optimizer_bounds import OptimizerBounds
from seqloom_server.nn.optimizer_spec import STEP, OptimizerSpec, check_positive

Tensors = dict[str, torch.Tensor]

_NORM_NUMBERS = 1 << 18  # summed at once; fixed, so that the norm does not depend on the pieces of a step
_ALIGNMENT = 64  # of blocks, so that a number is computed by the same vector instructions, whatever the pieces
_PIECE_NUMBERS = 1 << 20  # the default size of a piece


class Overflow(ArithmeticError):
    """A step would give a number that is not finite; the text says where. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive numbers of one parameter."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks that are updated without an interruption, all tensors of them views.

    buffers: by torch.optim's names. steps: the steps done, a float32 tensor [] for each block; none for sgd.
    """

    blocks: list[_Block]
    parameters: list[torch.Tensor]
    buffers: dict[str, list[torch.Tensor]]
    steps: list[torch.Tensor]


class Optimizer:
    """Updates `parameters` in place: contiguous tensors of one floating type on one device, kept by reference."""

    def __init__(self, spec: OptimizerSpec, parameters: Tensors) -> None:
        self.spec = spec
        self._parameters = parameters
        self._buffers: dict[str, Tensors] = {
            buffer: {name: torch.zeros_like(tensor) for name, tensor in parameters.items()} for buffer in spec.buffers
        }
        self._steps = 0
        self._bounds: OptimizerBounds | None = None  # None if unknown
        self._piece_numbers = _PIECE_NUMBERS
        self._pieces = self._cut(_PIECE_NUMBERS, 0)

    def step(
        self, gradients: Tensors, lr: float | None, clip_norm: float | None, piece_numbers: int
    ) -> Generator[None, None, float]:
        """Applies gradients, which are overwritten, and returns their norm before clipping, summed in float64.

        gradients: by parameter name. lr: the learning rate of this step, at least 0, None for the optimizer's own.
        clip_norm: of all gradients together, None for no clipping. piece_numbers: numbers updated between two yields,
        at least 64; the result does not depend on it. Raises InvalidSpec before anything else; Overflow if the norm, a
        weight or a moment would not be finite, and then nothing but the gradients has changed; or what a lack of memory
        raises, and then nothing at all has.
        """
        rate = self.spec.lr if lr is None else lr
        if rate:
            check_positive("lr", rate)
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        flat = {name: gradients[name].reshape(-1) for name in self._parameters}
        norm = yield from _norm(flat, piece_numbers)
        if not math.isfinite(norm):
            raise Overflow("the gradient, summed over its calls,")
        factor = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm is not None else 1.0
        if piece_numbers != self._piece_numbers:
            self._piece_numbers, self._pieces = piece_numbers, self._cut(piece_numbers, self._steps)
        bounds = yield from self._bounds_after(norm * factor, rate)
        if bounds is not None:
            yield from self._update(flat, factor, rate)  # in place: it needs no memory
        else:
            yield from self._try_update(flat, factor, rate)
        self._bounds = bounds
        self._steps += 1
        return norm

    def _try_update(self, flat: Tensors, factor: float, rate: float) -> Generator[None, None, None]:
        """Updates and looks at the numbers; after any error everything is as before, also for want of memory."""
        changed = [*self._changed().values(), *(flat.values() if factor < 1.0 else ())]
        copies = yield from _copies(changed)
        pieces = self._cut(self._piece_numbers, self._steps)  # the others count the step
        try:
            yield from self._update(flat, factor, rate)
            if name := (yield from self._not_finite()):
                raise Overflow(name)
        except Exception:
            # everything that this needs is there
            self._bounds, self._pieces = None, pieces
            for tensor, before in zip(changed, copies, strict=True):
                with torch.inference_mode():
                    tensor.copy_(before)
                yield
            raise

    def _update(self, flat: Tensors, factor: float, rate: float) -> Generator[None, None, None]:
        for piece in self._pieces:
            # not around the loop: the mode would stay on for other work between two pieces
            with torch.inference_mode():
                gradients = [flat[block.name][block.begin : block.end] for block in piece.blocks]
                for gradient in gradients if factor < 1.0 else ():
                    gradient.mul_(factor)
                self._apply(piece, gradients, rate)
            yield

    def _apply(self, piece: _Piece, gradients: list[torch.Tensor], rate: float) -> None:
        spec = self.spec
        # fused: one pass over the memory of each block instead of one for each operation
        if spec.kind == "sgd":
            sgd(
                piece.parameters,
                gradients,
                [*piece.buffers.get("momentum_buffer", [])],  # a list of another type
                fused=True,
                weight_decay=spec.weight_decay,
                momentum=spec.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            return
        (adamw if spec.kind == "adamw" else adam)(
            piece.parameters,
            gradients,
            piece.buffers["exp_avg"],
            piece.buffers["exp_avg_sq"],
            [],
            piece.steps,
            fused=True,
            amsgrad=False,
            beta1=spec.beta1,
            beta2=spec.beta2,
            lr=rate,
            weight_decay=spec.weight_decay,
            eps=spec.epsilon,
            maximize=False,
        )

    def _bounds_after(self, gradient: float, rate: float) -> Generator[None, None, OptimizerBounds | None]:
        """Returns bounds after a step, from known bounds or else the numbers; None if it might overflow."""
        dtype = next(iter(self._parameters.values())).dtype
        for known in (self._bounds, None):
            if known is None:
                known = OptimizerBounds((yield from _largest(self._parameters, self._piece_numbers)))
                for name, buffer in zip(("first", "second"), self._buffers.values(), strict=False):
                    known = replace(known, **{name: (yield from _largest(buffer, self._piece_numbers))})
            after = known.after(self.spec, gradient, rate, self._steps + 1, dtype)
            if after is not None:
                return after
        return None

    def _changed(self) -> Tensors:
        """Returns the tensors that a step changes."""
        return {**self._parameters, **{name: tensor for name, tensor in self.state().items() if name != STEP}}

    def _not_finite(self) -> Generator[None, None, str]:
        """Returns the name of a tensor with a number that is not finite, or ""."""
        for name, tensor in self._changed().items():
            if not math.isfinite((yield from _largest({name: tensor}, self._piece_numbers))):
                return name
        return ""

    def state(self) -> Tensors:
        """Returns everything that later steps depend on beside the parameters: see OptimizerSpec.state_shapes().

        The tensors are not copied, except "step".
        """
        tensors = {
            f"{buffer}.{name}": tensor for buffer, kept in self._buffers.items() for name, tensor in kept.items()
        }
        return {**tensors, STEP: torch.tensor(self._steps, dtype=torch.int64)}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies a state; later steps then equal those of the optimizer that it is from, bit by bit on a CPU.

        Raises ValueError for other names, shapes or types, and what a lack of memory raises: then nothing has changed.
        """
        own = self.state()
        if tensors.keys() != own.keys():
            raise ValueError(f"missing or other tensors in the state: {sorted(tensors.keys() ^ own.keys())[:4]}")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ValueError(f"{name} is {found}: expected {tensor.dtype} {list(tensor.shape)}")
        steps = int(tensors[STEP])
        pieces = self._cut(self._piece_numbers, steps)  # before anything is copied, as memory may be short
        with torch.inference_mode():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self._steps, self._bounds, self._pieces = steps, None, pieces

    def _cut(self, piece_numbers: int, steps: int) -> list[_Piece]:
        """steps: that were done before the next one."""
        piece_numbers = max(_ALIGNMENT, piece_numbers - piece_numbers % _ALIGNMENT)
        pieces: list[_Piece] = []
        blocks: list[_Block] = []
        room = piece_numbers
        for name, begin, end in _blocks(self._parameters, piece_numbers):
            if end - begin > room:
                pieces.append(self._prepare(blocks, steps))
                blocks, room = [], piece_numbers
            blocks.append(_Block(name, begin, end))
            room -= end - begin
        return [*pieces, self._prepare(blocks, steps)]

    def _prepare(self, blocks: list[_Block], steps: int) -> _Piece:
        def views(tensors: Tensors) -> list[torch.Tensor]:
            return [tensors[block.name].detach().view(-1)[block.begin : block.end] for block in blocks]

        parameters = views(self._parameters)
        adaptive = self.spec.kind != "sgd"
        counts = [
            torch.tensor(float(steps), dtype=torch.float32, device=each.device)
            for each in (parameters if adaptive else ())
        ]
        return _Piece(blocks, parameters, {name: views(tensors) for name, tensors in self._buffers.items()}, counts)


def _copies(tensors: list[torch.Tensor]) -> Generator[None, None, list[torch.Tensor]]:
    copies: list[torch.Tensor] = []
    for tensor in tensors:
        copies.append(tensor.detach().clone())
        yield
    return copies


def _blocks(tensors: Tensors, numbers: int) -> Iterator[tuple[str, int, int]]:
    """Yields name, begin and end of blocks of at most `numbers` numbers, over all tensors in order."""
    for name, tensor in tensors.items():
        for begin in range(0, tensor.numel(), numbers):
            yield name, begin, min(begin + numbers, tensor.numel())


def _norm(flat: Tensors, piece_numbers: int) -> Generator[None, None, float]:
    """Returns the Euclidean norm of all tensors together, in float64."""

    def square(block: torch.Tensor) -> torch.Tensor:
        wide = block.double()
        return wide.dot(wide)

    squares = yield from _map_blocks(square, flat, piece_numbers)
    return math.sqrt(float(squares.sum()))


def _largest(tensors: Tensors, piece_numbers: int) -> Generator[None, None, float]:
    """Returns the largest magnitude, NaN if there is a NaN."""
    flat = {name: tensor.view(-1) for name, tensor in tensors.items()}
    found = yield from _map_blocks(largest_of, flat, piece_numbers)
    return float(found.max())


def largest_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the largest magnitude, [], NaN if there is a NaN; reads once, without waiting for the device."""
    least, most = torch.aminmax(tensor)
    return torch.maximum(-least, most)


def _map_blocks(
    function: Callable[[torch.Tensor], torch.Tensor], flat: Tensors, piece_numbers: int
) -> Generator[None, None, torch.Tensor]:
    """Returns function(block), a scalar, for each block of all tensors; yields after `piece_numbers` numbers."""
    found: list[torch.Tensor] = []
    done = 0
    for name, begin, end in _blocks(flat, _NORM_NUMBERS):
        with torch.inference_mode():
            found.append(function(flat[name][begin:end]))
        done += end - begin
        if done >= piece_numbers:
            done = 0
            yield
    with torch.inference_mode():
        return torch.stack(found)

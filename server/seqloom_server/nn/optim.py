"""Optimizer steps in pieces of bounded work, between which the device can run other work: torch.optim over blocks."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

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
    """Consecutive numbers of one parameter, and the leaf tensor that torch.optim updates."""

    name: str
    begin: int
    end: int
    leaf: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks that are updated without an interruption."""

    optimizer: torch.optim.Optimizer
    blocks: list[_Block]


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
        self._pieces = self._cut(_PIECE_NUMBERS)

    def step(
        self, gradients: Tensors, lr: float | None, clip_norm: float | None, piece_numbers: int
    ) -> Generator[None, None, float]:
        """Applies gradients, which are overwritten, and returns their norm before clipping, summed in float64.

        gradients: by parameter name. lr: the learning rate of this step, at least 0, None for the optimizer's own.
        clip_norm: of all gradients together, None for no clipping. piece_numbers: numbers updated between two yields,
        at least 64; the result does not depend on it. Raises InvalidSpec before anything else; Overflow if the norm, a
        weight or a moment would not be finite, and then nothing but the gradients has changed.
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
            self._piece_numbers, self._pieces = piece_numbers, self._cut(piece_numbers)
        bounds = yield from self._bounds_after(norm * factor, rate)
        before = None if bounds is not None else (yield from self._copies())
        yield from self._update(flat, factor, rate)
        if before is not None and (name := (yield from self._not_finite())):
            yield from self._restore(before)
            raise Overflow(name)
        self._bounds = bounds
        self._steps += 1
        return norm

    def _update(self, flat: Tensors, factor: float, rate: float) -> Generator[None, None, None]:
        for piece in self._pieces:
            # not around the loop: the mode would stay on for other work between two pieces
            with torch.inference_mode():
                for block in piece.blocks:
                    block.leaf.grad = flat[block.name][block.begin : block.end]
                    if factor < 1.0:
                        block.leaf.grad.mul_(factor)
                piece.optimizer.param_groups[0]["lr"] = rate
                piece.optimizer.step()
                piece.optimizer.zero_grad(set_to_none=True)
            yield

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

    def _copies(self) -> Generator[None, None, Tensors]:
        copies: Tensors = {}
        for name, tensor in self._changed().items():
            copies[name] = tensor.detach().clone()
            yield
        return copies

    def _not_finite(self) -> Generator[None, None, str]:
        """Returns the name of a tensor with a number that is not finite, or ""."""
        for name, tensor in self._changed().items():
            if not math.isfinite((yield from _largest({name: tensor}, self._piece_numbers))):
                return name
        return ""

    def _restore(self, before: Tensors) -> Generator[None, None, None]:
        for name, tensor in self._changed().items():
            with torch.inference_mode():
                tensor.copy_(before[name])
            yield
        self._pieces = self._cut(self._piece_numbers)  # the pieces' optimizers have counted the step
        self._bounds = None

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

        Raises ValueError for other names, shapes or types, and then nothing has changed.
        """
        own = self.state()
        if tensors.keys() != own.keys():
            raise ValueError(f"missing or other tensors in the state: {sorted(tensors.keys() ^ own.keys())[:4]}")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ValueError(f"{name} is {found}: expected {tensor.dtype} {list(tensor.shape)}")
        with torch.inference_mode():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self._steps = int(own[STEP])
        self._bounds = None
        self._pieces = self._cut(self._piece_numbers)

    def _cut(self, piece_numbers: int) -> list[_Piece]:
        piece_numbers = max(_ALIGNMENT, piece_numbers - piece_numbers % _ALIGNMENT)
        pieces: list[_Piece] = []
        blocks: list[_Block] = []
        room = piece_numbers
        for name, begin, end in _blocks(self._parameters, piece_numbers):
            if end - begin > room:
                pieces.append(self._prepare(blocks))
                blocks, room = [], piece_numbers
            blocks.append(_Block(name, begin, end, self._parameters[name].detach().view(-1)[begin:end]))
            room -= end - begin
        return [*pieces, self._prepare(blocks)]

    def _prepare(self, blocks: list[_Block]) -> _Piece:
        optimizer = self._make([block.leaf for block in blocks])
        for block in blocks:
            optimizer.state[block.leaf] = {
                buffer: tensors[block.name].view(-1)[block.begin : block.end]
                for buffer, tensors in self._buffers.items()
            }
            if self.spec.kind != "sgd":
                optimizer.state[block.leaf]["step"] = torch.tensor(
                    float(self._steps), dtype=torch.float32, device=block.leaf.device
                )
        return _Piece(optimizer, blocks)

    def _make(self, leaves: list[torch.Tensor]) -> torch.optim.Optimizer:
        spec = self.spec
        # fused: one pass over the memory of each block instead of one for each operation
        if spec.kind == "sgd":
            return torch.optim.SGD(
                leaves, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
            )
        adam = torch.optim.AdamW if spec.kind == "adamw" else torch.optim.Adam
        return adam(
            leaves,
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
            weight_decay=spec.weight_decay,
            fused=True,
        )


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

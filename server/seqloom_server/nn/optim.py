"""Optimizers whose step is cut into pieces of bounded work: torch.optim over views of blocks of the parameters."""

import math
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from seqloom_server.nn.spec import InvalidSpec

OptimizerKind = Literal["sgd", "adam", "adamw"]
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]

STEP = "step"  # the name of the count of steps among the tensors of a state

_KINDS = ("sgd", "adam", "adamw")
_NORM_NUMBERS = 1 << 18  # summed at once; fixed, so that the norm does not depend on how a step is cut
_ALIGNMENT = 64  # of blocks: the vector instructions that compute a number are then the same, however a step is cut
_PIECE_NUMBERS = 1 << 20  # what a step is prepared for before one is asked for


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """What torch.optim's SGD, Adam or AdamW is made with. Only SGD has momentum, only the others betas and epsilon.

    Raises InvalidSpec, which names the field.
    """

    kind: OptimizerKind
    lr: float
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.kind, str) and self.kind in _KINDS):
            raise InvalidSpec("kind", f"is {self.kind!r:.80}: expected one of {', '.join(_KINDS)}")
        for field in ("lr", "epsilon"):
            check_positive(field, getattr(self, field))
        for field in ("momentum", "beta1", "beta2"):
            value = getattr(self, field)
            if not (is_finite_number(value) and 0 <= value < 1):
                raise InvalidSpec(field, f"is {value!r:.80}: expected a number from 0 to below 1")
        if not (is_finite_number(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidSpec("weight_decay", f"is {self.weight_decay!r:.80}: expected a finite number of at least 0")
        if self.momentum and self.kind != "sgd":
            raise InvalidSpec("momentum", f"is {self.momentum!r}: only sgd has momentum, {self.kind} has beta1")

    @property
    def buffers(self) -> tuple[str, ...]:
        """What is kept for each parameter, by torch.optim's names."""
        if self.kind != "sgd":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum else ()

    def state_shapes(self, parameters: Mapping[str, tuple[int, ...]]) -> Shapes:
        """The tensors of Optimizer.state(): "exp_avg.output.bias" [O] and so on, and "step" [], an int64."""
        shapes = {f"{buffer}.{name}": shape for buffer in self.buffers for name, shape in parameters.items()}
        return {**shapes, STEP: ()}


def check_positive(field: str, value: object) -> None:
    """Raises InvalidSpec unless `value` is a finite number above 0."""
    if not (is_finite_number(value) and value > 0):  # type: ignore[operator]
        raise InvalidSpec(field, f"is {value!r:.80}: expected a finite number above 0")


def is_finite_number(value: object) -> bool:
    """Whether it is an int or a float that a float can hold, and no bool."""
    # an int beyond all floats has no math.isfinite()
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class _Block:
    """Some consecutive numbers of one parameter, and the leaf that torch.optim knows them as."""

    name: str
    begin: int
    end: int
    leaf: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks that are updated at once."""

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
        self._piece_numbers = _PIECE_NUMBERS
        self._pieces = self._cut(_PIECE_NUMBERS)

    def step(
        self, gradients: Tensors, lr: float | None, clip_norm: float | None, piece_numbers: int
    ) -> Generator[None, None, float]:
        """Applies gradients, which are overwritten, and returns their norm before clipping, summed in float64.

        gradients: as the parameters, by name. lr: of this step alone, None for the optimizer's own. clip_norm: of all
        gradients together, None for none. piece_numbers: how many numbers are worked on between two yields, at least
        64; no bit of the result depends on it. Where the norm is not finite, nothing changes. Raises InvalidSpec
        before anything else.
        """
        rate = self.spec.lr if lr is None else lr
        check_positive("lr", rate)
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        flat = {name: gradients[name].reshape(-1) for name in self._parameters}
        norm = yield from _norm(flat, piece_numbers)
        if not math.isfinite(norm):
            return norm
        factor = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm is not None else 1.0
        if piece_numbers != self._piece_numbers:
            self._piece_numbers, self._pieces = piece_numbers, self._cut(piece_numbers)
        for piece in self._pieces:
            # not around the loop: the mode would hold for whoever runs between two pieces
            with torch.inference_mode():
                for block in piece.blocks:
                    block.leaf.grad = flat[block.name][block.begin : block.end]
                    if factor < 1.0:
                        block.leaf.grad.mul_(factor)
                piece.optimizer.param_groups[0]["lr"] = rate
                piece.optimizer.step()
                piece.optimizer.zero_grad(set_to_none=True)
            yield
        self._steps += 1
        return norm

    def state(self) -> Tensors:
        """Everything that later steps depend on beside the parameters: see OptimizerSpec.state_shapes.

        The tensors are those in use, no copies, but for "step".
        """
        tensors = {
            f"{buffer}.{name}": tensor for buffer, kept in self._buffers.items() for name, tensor in kept.items()
        }
        return {**tensors, STEP: torch.tensor(self._steps, dtype=torch.int64)}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies what state() gave: the next steps are then those of that optimizer, bit by bit on a CPU.

        Raises ValueError for other names, shapes or types, and then nothing has changed.
        """
        own = self.state()
        if tensors.keys() != own.keys():
            raise ValueError(f"the state has other tensors: {sorted(tensors.keys() ^ own.keys())[:4]}")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                raise ValueError(f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}")
        with torch.inference_mode():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self._steps = int(own[STEP])
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
        # fused: a pass over the memory of each block in place of one for each operation
        common: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay, "fused": True}
        if spec.kind == "sgd":
            return torch.optim.SGD(leaves, momentum=spec.momentum, **common)
        adam = torch.optim.AdamW if spec.kind == "adamw" else torch.optim.Adam
        return adam(leaves, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, **common)


def _blocks(tensors: Tensors, numbers: int) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of blocks of at most so many numbers, over all tensors in order."""
    for name, tensor in tensors.items():
        for begin in range(0, tensor.numel(), numbers):
            yield name, begin, min(begin + numbers, tensor.numel())


def _norm(flat: Tensors, piece_numbers: int) -> Generator[None, None, float]:
    """The Euclidean norm of all tensors together, in float64."""
    squares: list[torch.Tensor] = []
    done = 0
    for name, begin, end in _blocks(flat, _NORM_NUMBERS):
        with torch.inference_mode():
            block = flat[name][begin:end].double()
            squares.append(block.dot(block))
        done += end - begin
        if done >= piece_numbers:
            done = 0
            yield
    with torch.inference_mode():
        return math.sqrt(float(torch.stack(squares).sum()))

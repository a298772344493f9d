"""An optimizer that finds no memory, at whichever tensor it makes, changes nothing: the same again is as the first."""

import itertools

import pytest
import torch
from helpers.short_memory import fail
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.optim import Optimizer
from seqloom_server.nn.optimizer_spec import OptimizerSpec
from torch.utils._python_dispatch import TorchDispatchMode

SPECS = [OptimizerSpec("sgd", 0.05, momentum=0.9), OptimizerSpec("adam", 1e-3), OptimizerSpec("adamw", 1e-3)]
SHAPES = {"rnn.weight_ih_l0": (23, 17), "output.bias": (7,)}
LARGE = 1e19  # a gradient that might overflow: the step looks at all numbers behind it

specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


class MemoryFor(TorchDispatchMode):
    """Lets torch make so many tensors, and no more."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        returns = function._schema.returns
        made = returns and not any(each.alias_info for each in returns)
        if made or function is torch.ops.aten.lift_fresh.default:  # which torch.tensor() ends with
            if not self.left:
                fail()
            self.left -= 1
        return function(*arguments, **(keywords or {}))


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def all_of(parameters, optimizer, gradients=None):
    tensors = {**parameters, **optimizer.state(), **{f"d {name}": each for name, each in (gradients or {}).items()}}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert not [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])]


def attempts(call, least=4):
    """Yields after each try that found no memory, with memory for one tensor more each time, until one succeeds."""
    for count in itertools.count():
        try:
            with MemoryFor(count):
                call()
        except RuntimeError as error:
            if not is_memory_short(error):
                raise
            yield count
        else:
            assert count >= least
            return


@specs
@pytest.mark.parametrize(("scale", "clip_norm"), [(1.0, None), (1.0, 0.1), (LARGE, None), (LARGE, LARGE)])
def test_a_step_changes_nothing_wherever_memory_runs_out_and_then_is_that_of_a_twin(spec, scale, clip_norm):
    (parameters, optimizer), (others, twin) = ((own := draw(0), Optimizer(spec, own)) for _ in range(2))
    for step in range(3):
        gradients, same = draw(step + 1, scale), draw(step + 1, scale)
        before = all_of(parameters, optimizer, gradients)
        norms = []

        def call(which, gradients, norms=norms):
            norms.append((yield from which.step(gradients, None, clip_norm, 64)))

        for _ in attempts(lambda call=call, gradients=gradients: list(call(optimizer, gradients))):
            assert_same(all_of(parameters, optimizer, gradients), before)
        list(call(twin, same))
        assert norms[0] == norms[1]
        assert_same(all_of(parameters, optimizer), all_of(others, twin))


@specs
def test_a_state_that_memory_does_not_suffice_for_changes_nothing(spec):
    (parameters, optimizer), (others, twin) = ((own := draw(0), Optimizer(spec, own)) for _ in range(2))
    list(twin.step(draw(1), None, None, 64))
    state = {name: tensor.clone() for name, tensor in twin.state().items()}
    before = all_of(parameters, optimizer)
    for _ in attempts(lambda: optimizer.load_state(state), least=1 + len(optimizer._pieces[0].steps)):
        assert_same(all_of(parameters, optimizer), before)
        assert [float(count) for piece in optimizer._pieces for count in piece.steps] == [0.0] * (
            sum(len(piece.steps) for piece in optimizer._pieces)
        )
    for name, tensor in others.items():
        parameters[name].copy_(tensor)
    for each in (optimizer, twin):
        list(each.step(draw(2), None, None, 64))
    assert_same(all_of(parameters, optimizer), all_of(others, twin))

"""Optimizers in pieces: torch.optim's numbers, however cut; a state that goes on bit by bit; wrong fields named."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn import optim
from seqloom_server.nn.optim import Optimizer, Overflow
from seqloom_server.nn.optimizer_spec import OptimizerSpec
from seqloom_server.nn.spec import InvalidSpec

SPECS = [
    OptimizerSpec("sgd", 0.05),
    OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01),
    OptimizerSpec("adam", 1e-3, weight_decay=0.02),
    OptimizerSpec("adam", 1e-3, beta1=0.8, beta2=0.99, epsilon=1e-6),
    OptimizerSpec("adamw", 2e-3, weight_decay=0.01),
]
SHAPES = {"rnn.weight_ih_l0": (23, 17), "rnn.bias_ih_l0": (23,), "output.weight": (7, 23), "output.bias": (1,)}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.momentum}-{spec.weight_decay}")


def draw(seed, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, dtype=dtype, generator=generator) for name, shape in shapes.items()}


def apply(optimizer, gradients, lr=None, clip_norm=None, piece_numbers=1 << 20):
    """Returns the norm, and how many pieces the step had."""
    program, pieces = (
        optimizer.step({name: each.clone() for name, each in gradients.items()}, lr, clip_norm, piece_numbers),
        0,
    )
    while True:
        try:
            next(program)
        except StopIteration as end:
            return end.value, pieces
        assert not torch.is_inference_mode_enabled()
        pieces += 1


def torch_twin(spec, parameters, **more):
    leaves = [tensor.clone().requires_grad_() for tensor in parameters.values()]
    if spec.kind == "sgd":
        return leaves, torch.optim.SGD(leaves, spec.lr, spec.momentum, weight_decay=spec.weight_decay, **more)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.kind]
    return leaves, kind(leaves, spec.lr, (spec.beta1, spec.beta2), spec.epsilon, spec.weight_decay, **more)


@dtypes
@specs
@pytest.mark.parametrize("clip_norm", [None, 24.0])
def test_fifty_steps_are_those_of_torch_optim(spec, dtype, clip_norm):
    parameters = draw(0, dtype)
    leaves, twin = torch_twin(spec, parameters)
    optimizer = Optimizer(spec, parameters)
    clipped = 0
    for step in range(50):
        gradients = draw(step + 1, dtype)
        lr = spec.lr / (step + 1) if step % 3 == 1 else None  # a rate of its own, and the next step without
        norm, _ = apply(optimizer, gradients, lr, clip_norm, piece_numbers=64)
        for leaf, gradient in zip(leaves, gradients.values(), strict=True):
            leaf.grad = gradient.clone()
        expected = torch.nn.utils.clip_grad_norm_(leaves, clip_norm or math.inf)
        assert norm == pytest.approx(float(expected), rel=1e-6 if dtype == torch.float32 else 1e-13)
        clipped += norm > (clip_norm or math.inf)
        twin.param_groups[0]["lr"] = lr or spec.lr
        twin.step()
    assert clip_norm is None or 10 < clipped < 40, "some are clipped, some are not"
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for leaf, tensor in zip(leaves, parameters.values(), strict=True):
        torch.testing.assert_close(tensor, leaf.detach(), rtol=tolerance, atol=tolerance)


@dtypes
@specs
@settings(deadline=None, max_examples=15)
@given(piece_numbers=st.integers(1, 500), seed=st.integers(0, 1000))
def test_how_a_step_is_cut_changes_no_bit(spec, dtype, piece_numbers, seed):
    whole, cut = draw(seed, dtype), draw(seed, dtype)
    first, second = Optimizer(spec, whole), Optimizer(spec, cut)
    for step in range(4):
        gradients = draw(seed + step + 1, dtype)
        # cut otherwise each time
        norms = apply(first, gradients, None, 5.0)[0], apply(second, gradients, None, 5.0, piece_numbers + step)[0]
        assert norms[0] == norms[1]
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name])
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name])


@specs
def test_how_a_large_step_is_cut_changes_no_bit_on_two_threads(spec):
    shapes = {"output.weight": (331, 607), "output.bias": (331,)}  # more than torch gives to one thread
    whole, cut = draw(0, torch.float32, shapes), draw(0, torch.float32, shapes)
    first, second = Optimizer(spec, whole), Optimizer(spec, cut)
    torch.set_num_threads(2)
    try:
        for step in range(3):
            gradients = draw(step + 1, torch.float32, shapes)
            assert apply(first, gradients, None, 1.0)[0] == apply(second, gradients, None, 1.0, 40_001)[0]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


@specs
def test_pieces_cross_parameters_and_are_no_larger_than_asked_for(spec):
    optimizer = Optimizer(spec, draw(0))
    count = sum(math.prod(shape) for shape in SHAPES.values())
    numbers = 100
    apply(optimizer, draw(1), None, None, numbers)  # which also looks how large everything is
    _, pieces = apply(optimizer, draw(1), None, None, numbers)
    assert all(sum(block.end - block.begin for block in piece.blocks) <= numbers for piece in optimizer._pieces)
    assert count / numbers <= pieces <= 2 * count / numbers + len(SHAPES)


@dtypes
@specs
def test_a_state_that_is_loaded_goes_on_bit_by_bit(spec, dtype):
    parameters = draw(0, dtype)
    optimizer = Optimizer(spec, parameters)
    for step in range(5):
        apply(optimizer, draw(step + 1, dtype), None, 5.0, 50)
    kept = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    copies = {name: tensor.clone() for name, tensor in parameters.items()}
    other = Optimizer(spec, copies)
    apply(other, draw(99, dtype))  # what it had before is gone
    for name, tensor in parameters.items():
        copies[name].copy_(tensor)
    other.load_state(kept)
    for step in range(5, 10):
        apply(optimizer, draw(step + 1, dtype), None, 5.0, 50)
        apply(other, draw(step + 1, dtype), None, 5.0, 70)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in parameters.items())
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in optimizer.state().items())
    assert int(other.state()["step"]) == 10


@specs
def test_a_state_has_the_tensors_that_its_specification_says(spec):
    parameters = draw(0, torch.float32)
    state = Optimizer(spec, parameters).state()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == spec.state_shapes(SHAPES)
    assert all(tensor.dtype == (torch.int64 if name == "step" else torch.float32) for name, tensor in state.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("step"),
        lambda state: state.update({"exp_avg.more": torch.zeros(2)}),
        lambda state: state.update({"exp_avg.output.bias": torch.zeros(2, dtype=torch.float64)}),
        lambda state: state.update({"exp_avg.output.bias": torch.zeros(1)}),
    ],
    ids=["missing", "extra", "misshapen", "mistyped"],
)
def test_a_state_of_another_optimizer_is_refused_and_changes_nothing(change):
    optimizer = Optimizer(OptimizerSpec("adam", 1e-3), draw(0))
    apply(optimizer, draw(1))
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    change(state)
    with pytest.raises(ValueError, match=r"other tensors|^exp_avg\.output\.bias is torch"):
        optimizer.load_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())


def changed(parameters, optimizer):
    return {name: tensor.clone() for name, tensor in {**parameters, **optimizer.state()}.items()}


@specs
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_a_norm_that_is_not_finite_changes_nothing(spec, value):
    parameters = draw(0)
    optimizer = Optimizer(spec, parameters)
    apply(optimizer, draw(1))
    before = changed(parameters, optimizer)
    gradients = draw(2)
    gradients["output.bias"][0] = value
    with pytest.raises(Overflow, match="the gradient, summed over its calls,"):
        apply(optimizer, gradients, None, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in changed(parameters, optimizer).items())


numbers_up_to_overflow = st.floats(-50, 38.5).map(lambda exponent: 10.0**exponent)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), kind=st.sampled_from(["sgd", "adam", "adamw"]), seed=st.integers(0, 99))
def test_a_step_is_torch_optim_s_or_would_overflow_and_changes_nothing(data, kind, seed):
    small = {"output.weight": (3, 5), "output.bias": (3,)}
    spec = OptimizerSpec(
        kind,
        data.draw(numbers_up_to_overflow, "lr"),
        momentum=data.draw(st.sampled_from([0.0, 0.9]), "momentum") if kind == "sgd" else 0.0,
        epsilon=data.draw(st.sampled_from([1e-8, 1e-3, 1e-44, 1e-60]), "epsilon"),
        weight_decay=data.draw(st.sampled_from([0.0, 1e-2, 1e30]), "weight_decay"),
    )
    parameters = {
        name: tensor * data.draw(numbers_up_to_overflow, "weights")
        for name, tensor in draw(seed, torch.float32, small).items()
    }
    parameters = {name: tensor.nan_to_num() for name, tensor in parameters.items()}
    leaves, twin = torch_twin(spec, parameters, fused=True)
    optimizer, applied = Optimizer(spec, parameters), 0
    for step in range(4):
        scale, rate = (
            data.draw(numbers_up_to_overflow, "gradient"),
            data.draw(st.sampled_from([None, 0.0, 1e-3, 1e35]), "rate"),
        )
        gradients = {
            name: (tensor * scale).nan_to_num() for name, tensor in draw(seed + step + 1, torch.float32, small).items()
        }
        before, twins = changed(parameters, optimizer), copy.deepcopy((leaves, twin.state_dict()))
        for leaf, gradient in zip(leaves, gradients.values(), strict=True):
            leaf.grad = gradient.clone()
        twin.param_groups[0]["lr"] = spec.lr if rate is None else rate
        twin.step()
        kept = [value for state in twin.state.values() for value in state.values() if value is not None]
        fits = all(bool(torch.isfinite(tensor).all()) for tensor in [*leaves, *kept])
        try:
            apply(optimizer, gradients, rate, piece_numbers=64)
        except Overflow:
            assert not fits
            assert all(torch.equal(tensor, before[name]) for name, tensor in changed(parameters, optimizer).items())
            for leaf, old in zip(leaves, twins[0], strict=True):
                leaf.data.copy_(old)
            twin.load_state_dict(twins[1])
            continue
        applied += 1
        assert fits
        assert all(bool(torch.isfinite(tensor).all()) for tensor in changed(parameters, optimizer).values())
        for leaf, tensor in zip(leaves, parameters.values(), strict=True):
            torch.testing.assert_close(tensor, leaf.detach(), rtol=1e-5, atol=1e-6 * float(leaf.detach().abs().max()))
    assert int(optimizer.state()["step"]) == applied


@specs
def test_a_step_that_cannot_overflow_is_not_copied(spec, monkeypatch):
    parameters = draw(0, torch.float32)
    optimizer = Optimizer(spec, parameters)
    looked = []
    largest = optim._largest
    monkeypatch.setattr(optim, "_copies", None)
    monkeypatch.setattr(optim, "_largest", lambda *given: looked.append(1) or largest(*given))
    for step in range(200):
        apply(optimizer, draw(step + 1, torch.float32))
    once = 1 + len(spec.buffers)
    # Adam adds its decay to the gradient, which its rule divides by epsilon at worst: that bound grows fast
    assert len(looked) <= 40 * once if spec.kind == "adam" and spec.weight_decay else len(looked) == once


def test_a_rate_of_0_moves_the_moments_and_no_weight():
    parameters = draw(0)
    optimizer = Optimizer(SPECS[4], parameters)
    apply(optimizer, draw(1), 0.0)
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in draw(0).items())
    assert int(optimizer.state()["step"]) == 1
    assert float(optimizer.state()["exp_avg.output.bias"].abs().max()) > 0


def test_gradients_and_weights_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        parameters, gradients = draw(0), draw(1)
    plain = draw(0)
    apply(Optimizer(SPECS[2], plain), draw(1), None, 1.0)
    with torch.inference_mode():
        copies = {name: tensor.clone() for name, tensor in gradients.items()}
    for _ in Optimizer(SPECS[2], parameters).step(copies, None, 1.0, 32):
        pass
    assert all(torch.equal(tensor, plain[name]) for name, tensor in parameters.items())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", ["rmsprop", None, ["sgd"]]),
        ("lr", [10**400, 0, -1.0, math.nan, math.inf, "1", True, None]),
        ("momentum", [-0.1, 1.0, math.nan, "0"]),
        ("beta1", [-0.1, 1.0, math.nan]),
        ("beta2", [1, 2.0, math.inf]),
        ("epsilon", [0.0, -1e-8, math.nan]),
        ("weight_decay", [-1.0, math.inf, math.nan]),
    ],
)
def test_a_wrong_field_is_named(field, values):
    for value in values:
        with pytest.raises(InvalidSpec) as caught:
            OptimizerSpec(**{"kind": "sgd", "lr": 0.1, field: value})
        assert caught.value.field == field
        assert str(caught.value).startswith(f"{field}: is {repr(value)[:80]}")


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_momentum_is_for_sgd_alone(kind):
    with pytest.raises(InvalidSpec, match=f"momentum: is 0.9: only sgd has momentum, {kind} has beta1"):
        OptimizerSpec(kind, 0.1, momentum=0.9)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_steps_rate_and_bound_are_checked_before_anything_changes(value):
    parameters = draw(0)
    optimizer = Optimizer(SPECS[1], parameters)
    for arguments, field in ((value, None), "lr"), ((None, value), "clip_norm"):
        with pytest.raises(InvalidSpec) as caught:
            apply(optimizer, draw(1), *arguments)
        assert caught.value.field == field
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in draw(0).items())


@pytest.mark.parametrize(
    ("kind", "lr", "weight_decay"),
    [("adamw", 1e9, 1e30), ("adam", 1e-9, 1e39), ("sgd", 1e-9, 1e39), ("sgd", 1e39, 0.0)],
)
def test_factors_that_are_infinite_in_float32_are_an_overflow_of_small_weights_too(kind, lr, weight_decay):
    spec = OptimizerSpec(kind, lr, weight_decay=weight_decay)
    parameters = {name: tensor * 1e-10 for name, tensor in draw(0, torch.float32).items()}
    optimizer = Optimizer(spec, parameters)
    before = changed(parameters, optimizer)
    with pytest.raises(Overflow):
        apply(optimizer, {name: tensor * 1e-10 for name, tensor in draw(1, torch.float32).items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in changed(parameters, optimizer).items())


@dtypes
@specs
def test_steps_are_to_the_bit_those_of_the_fused_classes(spec, dtype):
    parameters = draw(0, dtype)
    leaves, twin = torch_twin(spec, parameters, fused=True)
    for leaf in leaves:  # one that has zeros for a moment from the beginning, as Optimizer has
        twin.state[leaf] = {buffer: torch.zeros_like(leaf) for buffer in spec.buffers}
        if spec.kind != "sgd":
            twin.state[leaf]["step"] = torch.tensor(0.0)
    optimizer = Optimizer(spec, parameters)
    for step in range(5):
        gradients = draw(step + 1, dtype)
        apply(optimizer, gradients, piece_numbers=64)
        for leaf, gradient in zip(leaves, gradients.values(), strict=True):
            leaf.grad = gradient.clone()
        twin.step()
    for leaf, tensor in zip(leaves, parameters.values(), strict=True):
        assert torch.equal(leaf.detach(), tensor)


def test_no_compiler_is_imported_for_a_step():
    script = """
import sys, torch
from seqloom_server.nn.optim import Optimizer
from seqloom_server.nn.optimizer_spec import OptimizerSpec
for spec in (OptimizerSpec("sgd", 0.1), OptimizerSpec("adam", 0.1), OptimizerSpec("adamw", 0.1)):
    for _ in Optimizer(spec, {"w": torch.ones(3)}).step({"w": torch.ones(3)}, None, 1.0, 64):
        pass
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

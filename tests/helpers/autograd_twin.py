"""A plain torch.nn network, one sequence at a time, differentiated by autograd: what a call of gradients must give."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.batch_gradients import gradients
from seqloom_server.nn.losses.training_example import Example, GradientRequest

EVERYTHING = GradientRequest(
    parameters="dense", inputs=True, initial_state=True, outputs=True, hidden=True, final_state=True
)
LOSSES = ["cross_entropy", "mse", "ctc", None]


def make_network(spec, seed=0, scale=1.0):
    """Drawn uniformly as torch.nn does, times `scale`."""
    draw = np.random.default_rng(seed)
    bound = scale / np.sqrt(spec.hidden_size)
    shapes = spec.parameter_shapes()
    parameters = {name: torch.tensor(draw.uniform(-bound, bound, shape)) for name, shape in shapes.items()}
    return Network(spec, parameters, "cpu")


def make_state(spec, draw, scale=0.5):
    """[rows, 1, width] per part of the state."""
    return tuple(
        (scale * draw.standard_normal((rows, 1, width))).astype(spec.dtype)
        for rows, width in spec.state_shapes().values()
    )


def make_example(spec, length, loss, draw, *, states=True, scale=1.0):
    """One sequence with random targets: a tenth of the labels ignored; ctc labels as many as fit, with repeats."""
    classes = spec.output_size
    targets = d_o = None
    if loss == "cross_entropy":
        targets = draw.integers(0, classes, length).astype(np.int32)
        targets[draw.random(length) < 0.1] = -100
    elif loss == "mse":
        targets = draw.standard_normal((length, classes)).astype(spec.dtype)
    elif loss == "ctc":
        labels = draw.integers(1, classes, draw.integers(0, length + 1))
        while len(labels) + (labels[1:] == labels[:-1]).sum() > length:
            labels = labels[:-1]
        targets = labels.astype(np.int32)
    else:
        d_o = draw.standard_normal((length, classes)).astype(spec.dtype)
    xs = draw.standard_normal((length, spec.input_size)).astype(spec.dtype)
    before, after = (make_state(spec, draw), make_state(spec, draw)) if states else (None, None)
    example = Example(xs, loss, targets, d_o, scale, before, after)
    for field in dataclasses.fields(example):
        value = getattr(example, field.name)
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return example


class Call(NamedTuple):
    """A GradientCall."""

    examples: list
    request: GradientRequest


def run(network, calls, *, total=False, piece_flops=1e9, max_cells=10**6):
    """Returns (the batch's gradients, in how many pieces)."""
    calls = [Call(*call) for call in calls]
    steps = gradients(network, calls, total=total, piece_flops=piece_flops, max_cells=max_cells)
    pieces = 1
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, pieces
        pieces += 1


class Twin(torch.nn.Module):
    """nn.Conv1d, nn.RNN/GRU/LSTM and nn.Linear in float64, with a network's weights."""

    def __init__(self, network):
        super().__init__()
        spec = self.spec = network.spec
        if spec.conv_channels:
            self.conv = torch.nn.Conv1d(spec.input_size, spec.conv_channels, spec.conv_width)
        sizes = (spec.conv_channels or spec.input_size, spec.hidden_size, spec.num_layers)
        kinds = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
        options = {"nonlinearity": spec.activation} if spec.cell == "elman" else {}
        self.rnn = kinds[spec.cell](*sizes, bidirectional=spec.bidirectional, **options)
        self.output = torch.nn.Linear(spec.outputs_width, spec.output_size)
        self.double().load_state_dict({name: tensor.double() for name, tensor in network.parameters().items()})

    def differentiate(self, example):
        """Autograd's gradients of one sequence, as float64 arrays by name; parameters' are added to what was there."""
        spec = self.spec
        xs = torch.tensor(example.xs).double().requires_grad_()
        given = example.initial_state or [np.zeros((rows, 1, width)) for rows, width in spec.state_shapes().values()]
        before = dict(
            zip(spec.state_parts, [torch.tensor(part).double().requires_grad_() for part in given], strict=True)
        )
        rows, after = xs, {}
        if spec.conv_channels:
            past = before["inputs"][:, 0] if spec.conv_width > 1 else xs[:0]
            source = torch.cat([past, xs])
            after["inputs"] = source[len(source) - spec.conv_width + 1 :, None]
            rows = torch.relu(self.conv(source.t()[None])[0].t())
        state = (before["hidden"], before["cell"]) if spec.cell == "lstm" else before["hidden"]
        hidden, state = self.rnn(rows[:, None], state)
        hidden = hidden[:, 0]
        hidden.retain_grad()
        after |= dict(zip(("hidden", "cell"), state if spec.cell == "lstm" else (state,), strict=False))
        outputs = self.output(hidden)
        outputs.retain_grad()
        loss = self.loss(outputs, example)
        objective = loss * example.scale
        if example.loss is None:
            objective = (outputs * torch.tensor(example.output_gradients).double()).sum() * example.scale
        if example.final_state_gradient is not None:
            for name, d_part in zip(spec.state_parts, example.final_state_gradient, strict=True):
                objective = objective + (after[name] * torch.tensor(d_part).double()).sum()
        objective.backward()
        found = {f"initial_state.{name}": part.grad for name, part in before.items()}
        found |= {f"final_state.{name}": after[name].detach() for name in spec.state_parts}
        found |= {"inputs": xs.grad, "outputs": outputs.grad, "loss": loss.detach() * example.scale}
        return {name: np.zeros(1) if tensor is None else tensor.numpy() for name, tensor in found.items()}

    @staticmethod
    def loss(outputs, example):
        if example.loss is None:
            return torch.zeros(())
        targets = torch.tensor(example.targets)
        if example.loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs, targets.long(), reduction="sum", ignore_index=-100)
        if example.loss == "mse":
            return ((outputs - targets) ** 2).sum()
        log_probs, lengths = (
            outputs.log_softmax(1)[:, None],
            (torch.tensor([len(outputs)]), torch.tensor([len(targets)])),
        )
        return torch.nn.functional.ctc_loss(log_probs, targets[None].long(), *lengths, reduction="sum")

    def gradients(self):
        return {name: parameter.grad.numpy().copy() for name, parameter in self.named_parameters()}


def differentiate(network, examples):
    """The twin's results for a call: one dictionary by name, its sequences joined as a call's results are."""
    twin = Twin(network)
    each = [twin.differentiate(example) for example in examples]
    joined = {name: np.concatenate([one[name] for one in each]) for name in ("inputs", "outputs")}
    for name in each[0]:
        if "state." in name:
            joined[name] = np.concatenate([one[name] for one in each], axis=1)
    return joined | {"losses": np.array([one["loss"] for one in each])} | twin.gradients()


def named(call, spec):
    """A call's results by the same names as the twin's."""
    found = {"losses": call.losses, "inputs": call.inputs, "outputs": call.outputs}
    found |= {f"initial_state.{name}": part for name, part in zip(spec.state_parts, call.initial_state, strict=True)}
    found |= {f"final_state.{name}": part for name, part in zip(spec.state_parts, call.final_state, strict=True)}
    return found | (call.dense if call.dense is not None else multiplied(call, spec))


def multiplied(call, spec):
    """Parameters' gradients out of a call's factors."""
    shapes, dense = spec.parameter_shapes(), {}
    for product in call.products:
        left = call.factors[product.left]
        whole = left.sum(0) if product.right is None else left.T @ call.factors[product.right]
        dense[product.parameter] = whole.reshape(shapes[product.parameter])
    return dense


def assert_equal(found, expected, tolerance):
    """Relative to the largest element of each array."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        scale = max(1e-3, np.abs(array).max(initial=0))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)

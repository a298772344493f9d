"""How far a network in bfloat16 is from itself in full, and what of the network that depends on."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from seqloom_server.nn.files.torch_import import from_state_dict
from seqloom_server.nn.forward.network import Network
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from benchmarks.pretrained.packages import Pretrained, Run, Said, Sequences, Tensors

STEPS = (10, 100, 1000)
FACTORS = (0.5, 1, 1.5, 2, 3, 4)
INPUT_FACTORS = (0.1, 10)
_NUDGE = 1e-6

Change = Callable[[Network], Network]


@dataclasses.dataclass
class Errors:
    """Of one network. hidden, probs: largest absolute differences; logits: relative to the largest one; changed:
    share of labels that are others; right, right_bf16: shares of them; None where there are no such.

    within: the largest of a hidden state within so many steps of long sequences; weights_alone: the last of these
    where everything but the weights is in full; amplification, company: see below, over the same sequences, the latter
    in full and in bfloat16; float32: the largest of a hidden state in full from that in float64.
    """

    network: str
    shape: str
    rows: int
    hidden: float
    logits: float | None = None
    probs: float | None = None
    changed: float | None = None
    right: float | None = None
    right_bf16: float | None = None
    within: dict[int, float] = dataclasses.field(default_factory=dict)
    weights_alone: float | None = None
    amplification: float | None = None
    company: tuple[float, float] | None = None
    float32: float | None = None


@dataclasses.dataclass
class Scaled:
    """The same of a network whose recurrent weights were multiplied, by factor, over its long sequences.

    larger: of a hidden state, where the inputs were multiplied instead.
    """

    network: str
    hidden: dict[float, float]
    amplification: dict[float, float]
    larger: dict[float, float]


def full(network: Network) -> Network:
    return _changed(network)


def bf16(network: Network) -> Network:
    return _changed(network, precision="bf16")


def weights_alone(network: Network) -> Network:
    """Returns the network in full, with the weights that it has in bfloat16."""
    return _changed(network, torch.bfloat16)


def double(network: Network) -> Network:
    return _changed(network, dtype="float64")


def _changed(network: Network, rounded_to: torch.dtype = torch.float32, **fields: str) -> Network:
    spec = dataclasses.replace(network.spec, **{"precision": "full", **fields})
    return Network(spec, {name: each.to(rounded_to) for name, each in network.parameters().items()}, "cpu")


def runner(change: Change) -> Run:
    """Returns what runs networks so changed; see pretrained.Run."""

    def run(
        parameters: Tensors, xs: Sequences, state: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[Sequences, Sequences, tuple[torch.Tensor, ...]]:
        units = parameters["rnn.weight_hh_l0"].shape[1]
        no_outputs = {"output.weight": torch.zeros(1, units), "output.bias": torch.zeros(1)}
        network = change(from_state_dict(no_outputs | parameters))
        dtype = getattr(torch, network.spec.dtype)
        packed = pack_sequence([x.to(dtype) for x in xs], enforce_sorted=False)
        if state is None:
            state = tuple(torch.zeros(rows, len(xs), width) for rows, width in network.spec.state_shapes().values())
        ordered = tuple(part.to(dtype).index_select(1, packed.sorted_indices) for part in state)
        hidden, after = network.advance(packed.data, packed.batch_sizes, ordered)
        logits = network.outputs(hidden, "logits")[0]
        hiddens, outputs = (unpack_sequence(packed._replace(data=each.double())) for each in (hidden, logits))
        return hiddens, outputs, tuple(part.index_select(1, packed.unsorted_indices) for part in after)

    return run


def errors(network: Pretrained) -> Errors:
    """Measures one network over its own inputs and, where it has some, over long ones."""
    one, other = network.say(runner(full)), network.say(runner(bf16))
    shape = " x ".join(str(n) for n in network.parameters["rnn.weight_hh_l0"].shape)
    layers = sum("weight_hh" in name for name in network.parameters)
    rows = sum(map(len, one.hidden))
    found = Errors(network.name, f"{layers} of {shape}", rows, max(_apart(one.hidden, other.hidden)))
    _compare(found, one, other)
    if network.long:
        apart = distances(network.parameters, network.long, bf16)
        found.within = {steps: within(apart, steps) for steps in STEPS}
        found.weights_alone = within(distances(network.parameters, network.long, weights_alone), STEPS[-1])
        found.amplification = amplification(network.parameters, network.long)
        whole, half = (company(network.parameters, network.long, change) for change in (full, bf16))
        found.company = whole, half
        found.float32 = within(distances(network.parameters, network.long, double), STEPS[-1])
    return found


def _compare(found: Errors, one: Said, other: Said) -> None:
    if one.logits is not None and other.logits is not None:
        found.logits = float((one.logits - other.logits).abs().max() / one.logits.abs().max())
    if one.probs is not None and other.probs is not None:
        found.probs = float((one.probs - other.probs).abs().max())
    if one.labels is not None and other.labels is not None:
        found.changed = float((one.labels != other.labels).double().mean())
        if one.truth is not None:
            found.right, found.right_bf16 = (float((s.labels == one.truth).double().mean()) for s in (one, other))


def distances(parameters: Tensors, xs: Sequences, change: Change) -> Sequences:
    """Returns, for each step of each sequence, the largest difference of a hidden state from that in full; [T_i]."""
    one, other = (runner(each)(parameters, xs)[0] for each in (full, change))
    return [(a - b).abs().amax(1) for a, b in zip(one, other, strict=True)]


def within(apart: Sequences, steps: int) -> float:
    """Returns the largest of the first so many steps."""
    return max(float(each[:steps].max()) for each in apart)


def amplification(parameters: Tensors, xs: Sequences) -> float:
    """Returns how many times a small change of the state grows: the largest change of a later state by it.

    In float64; every unit is moved up or down by 1e-6 half-way through each sequence.
    """
    run = runner(double)
    middles = [len(x) // 2 for x in xs]
    state = run(parameters, [x[:middle] for x, middle in zip(xs, middles, strict=True)])[2]
    signs = torch.randint(0, 2, state[0].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rest = [x[middle:] for x, middle in zip(xs, middles, strict=True)]
    one, other = (run(parameters, rest, (start, *state[1:]))[0] for start in (state[0], state[0] + _NUDGE * signs))
    return max(_apart(one, other)) / _NUDGE


def company(parameters: Tensors, xs: Sequences, change: Change) -> float:
    """Returns the largest difference of a hidden state between sequences run together and each alone."""
    run = runner(change)
    return max(_apart(run(parameters, xs)[0], [run(parameters, [x])[0][0] for x in xs]))


def scaled(name: str, parameters: Tensors, xs: Sequences, factors: Iterable[float] = FACTORS) -> Scaled:
    """Measures a network with its recurrent weights, and then its inputs, multiplied by each of the factors."""
    result = Scaled(name, {}, {}, {})
    for factor in factors:
        times = {key: each * factor if "weight_hh" in key else each for key, each in parameters.items()}
        result.hidden[factor] = within(distances(times, xs, bf16), STEPS[-1])
        result.amplification[factor] = amplification(times, xs)
    for factor in INPUT_FACTORS:
        result.larger[factor] = within(distances(parameters, [x * factor for x in xs], bf16), STEPS[-1])
    return result


def _apart(one: Sequences, other: Sequences) -> list[float]:
    return [float((a - b).abs().max()) for a, b in zip(one, other, strict=True)]

"""Ragged sequences through a network, packed by torch's own packer, and through the same module of torch.nn."""

import numpy as np
import torch
from seqloom_server.nn.forward.network import Network
from torch.nn.utils.rnn import pack_sequence


def make_sequences(spec, lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((length, spec.input_size)).astype(spec.dtype) for length in lengths]


def make_state(spec, count, seed=1):
    """[rows, count, width] per part of the state; what it holds in int8 lies in [-1, 1]."""
    draw = np.random.default_rng(seed)
    shapes = spec.state_shapes().values()
    hidden, *others = (0.5 * draw.standard_normal((rows, count, width)).astype(spec.dtype) for rows, width in shapes)
    return (hidden.clip(-1, 1) if spec.precision == "int8" else hidden, *others)


def zero_state(spec, count):
    return tuple(np.zeros((rows, count, width), spec.dtype) for rows, width in spec.state_shapes().values())


def run(network, sequences, state=None):
    """Advances all sequences in one packed call; returns [T_i, H] each and the final state parts, of spec.dtype."""
    state = zero_state(network.spec, len(sequences)) if state is None else state
    packed = pack_sequence([torch.tensor(sequence) for sequence in sequences], enforce_sorted=False)
    ordered = tuple(torch.tensor(part).index_select(1, packed.sorted_indices) for part in state)
    hidden, after = network.advance(packed.data, packed.batch_sizes, ordered)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(
        packed._replace(data=hidden.to(packed.data.dtype)), batch_first=True
    )
    outputs = [padded[i, :length].numpy() for i, length in enumerate(lengths)]
    return outputs, tuple(part.index_select(1, packed.unsorted_indices).numpy() for part in after)


def logits_of(network, hidden):
    """The logits [T, O] of hidden states as run() gives them, which the network takes in its products' own type."""
    kept = torch.bfloat16 if network.spec.precision == "bf16" else getattr(torch, network.spec.dtype)
    return network.outputs(torch.tensor(hidden, dtype=kept), "logits")[0]


def torch_twin(network):
    """torch.nn's own module and torch.nn.Linear with the network's weights, under their state dict's names."""
    spec = network.spec
    sizes = (spec.conv_channels or spec.input_size, spec.hidden_size, spec.num_layers)
    both = spec.bidirectional
    if spec.cell == "elman":
        rnn = torch.nn.RNN(*sizes, nonlinearity=spec.activation, bidirectional=both)
    else:
        rnn = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[spec.cell](*sizes, bidirectional=both)
    module = torch.nn.ModuleDict({"rnn": rnn, "output": torch.nn.Linear(spec.outputs_width, spec.output_size)})
    if spec.conv_channels:
        module["conv"] = torch.nn.Conv1d(spec.input_size, spec.conv_channels, spec.conv_width)
    module.to(getattr(torch, spec.dtype))
    module.load_state_dict(network.parameters(), strict=True)
    return module


def run_twin(module, sequence, state):
    """One sequence alone through torch.nn: (hidden [T, H], logits [T, O], final state parts [rows, 1, width])."""
    rows, before = torch.tensor(sequence), [torch.tensor(part) for part in state]
    inputs = []
    with torch.no_grad():
        if "conv" in module:
            width = module["conv"].kernel_size[0]
            past = torch.cat([before.pop()[:, 0], rows]) if width > 1 else rows
            inputs = [past[len(past) - width + 1 :, None]] if width > 1 else []
            rows = module["conv"](past.t()[None]).relu()[0].t()
        hidden, after = module["rnn"](rows[:, None], tuple(before) if len(before) > 1 else before[0])
        logits = module["output"](hidden[:, 0])
    after = [*(after if isinstance(after, tuple) else (after,)), *inputs]
    return hidden[:, 0].numpy(), logits.numpy(), tuple(part.numpy() for part in after)


def make_network(spec, seed=0):
    return Network.create(spec, seed)

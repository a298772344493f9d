"""Networks in int8: the bits of the plain twin's whole numbers, alone, in company, in chunks; near those in full."""

import dataclasses
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.ragged_batches import make_network, make_sequences, make_state, run, zero_state
from helpers.specs import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.forward import int8_linear
from seqloom_server.nn.forward.int8_linear import Int8Linear
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.reference import int8_forward
from seqloom_server.nn.spec import MAX_INT8_INPUTS, InvalidSpec

CELLS = ["elman", "gru", "lstm"]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


SHAPES = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "a convolution": {"conv_channels": 6, "conv_width": 3},
    "a convolution of one": {"conv_channels": 6, "conv_width": 1},
}


@pytest.fixture(params=["by onednn", "as float32"])
def _products(request, monkeypatch):
    if request.param == "as float32":
        monkeypatch.setattr(int8_linear, "onednn_is_exact", lambda: False)
        monkeypatch.setattr(int8_linear, "_EXACT", 30)
        monkeypatch.setattr(int8_linear, "_PART", 200)
    elif not int8_linear.onednn_is_exact():
        pytest.skip("this processor has no exact 8-bit products")


def tanh(x):
    """torch's, which is not numpy's in the last bit."""
    return torch.tanh(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def pair(cell, *, layers=1, sizes=(16, 33, 10), **more):
    """A network in full, and the same weights in int8."""
    full = make_network(make_spec(cell, layers=layers, dtype="float32", sizes=sizes, precision="full", **more))
    return full, Network(dataclasses.replace(full.spec, precision="int8"), full.parameters(), "cpu")


def arrays(network):
    return {name: tensor.numpy() for name, tensor in network.parameters().items()}


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def outputs_of(network, hidden):
    rows = torch.from_numpy(np.ascontiguousarray(hidden))
    kinds = [network.outputs(rows, kind, 3) for kind in ("logits", "probs", "log_probs", "labels", "top_k")]
    return [part.numpy() for values in kinds for part in values if part is not None]


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 99))
def test_it_has_the_bits_of_the_plain_twin(cell, layers, shape, lengths, seed):
    _, network = pair(cell, layers=layers, **SHAPES[shape])
    sequences = make_sequences(network.spec, lengths, seed)
    state = make_state(network.spec, len(lengths), seed)
    hidden, after = run(network, sequences, state)
    for n, xs in enumerate(sequences):
        own = tuple(part[:, n : n + 1] for part in state)
        wanted, final = int8_forward.forward(network.spec, arrays(network), xs, own, tanh)
        assert_same([hidden[n]], [wanted])
        assert_same([part[:, n : n + 1] for part in after], final)
        logits = network.outputs(torch.from_numpy(wanted), "logits")[0].numpy()
        assert_same([logits], [int8_forward.logits(arrays(network), wanted)])


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "both directions"])
@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=70), st.data())
def test_a_row_has_the_same_bits_alone_in_any_company_and_in_any_chunks(cell, shape, lengths, data):
    _, network = pair(cell, layers=2, **SHAPES[shape])
    sequences = make_sequences(network.spec, lengths)
    state = make_state(network.spec, len(lengths))
    hidden, after = run(network, sequences, state)
    one = data.draw(st.integers(0, len(lengths) - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, lengths[one]), max_size=4)) - {lengths[one]})
    own, pieces, outputs = tuple(part[:, one : one + 1] for part in state), [], []
    for rows in np.split(sequences[one], cuts):
        (piece,), own = run(network, [rows], own)
        pieces.append(piece)
        outputs.append(outputs_of(network, piece))
    assert_same([np.concatenate(pieces)], [hidden[one]])
    assert_same(own, [part[:, one : one + 1] for part in after])
    every = outputs_of(network, np.concatenate(hidden))
    start = sum(lengths[:one])
    for number, whole in enumerate(every):
        alone = np.concatenate([each[number] for each in outputs])
        np.testing.assert_array_equal(alone, whole[start : start + lengths[one]])


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_a_large_network_has_the_same_bits_where_threads_share_the_work(cell):
    _, network = pair(cell, sizes=(40, 700, 40_000))
    sequences, state = make_sequences(network.spec, [3] * 70), make_state(network.spec, 70)
    hidden, after = run(network, sequences, state)
    every = outputs_of(network, np.concatenate(hidden))
    for one in (0, 34, 69):
        (alone,), own = run(network, [sequences[one]], tuple(part[:, one : one + 1] for part in state))
        assert_same([alone], [hidden[one]])
        assert_same(own, [part[:, one : one + 1] for part in after])
        for step in range(3):
            for part, whole in zip(outputs_of(network, alone[step : step + 1]), every, strict=True):
                np.testing.assert_array_equal(part[0], whole[3 * one + step])


@pytest.mark.usefixtures("_products")
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.integers(1, 90), st.booleans(), st.integers(0, 9))
def test_products_are_exact_for_any_number_of_rows_and_the_largest_numbers(rows, inputs, classes, by_row, seed):
    draw = np.random.default_rng(seed)
    # of every sign and size, the largest very often
    weight = (draw.choice([1.0, 1.0, 1.0, 0.3], (classes, inputs)) * draw.choice([-0.7, 0.7], (1, inputs))).astype("f4")
    x = np.sign(draw.standard_normal((rows, inputs))).astype("f4") * (37.5 if by_row else 1.0)
    x[draw.integers(rows)] = np.sign(weight[draw.integers(classes)]) * np.abs(x).max()
    own = Int8Linear(torch.from_numpy(weight), None, "rows" if by_row else "states")
    got = own(torch.from_numpy(x)).numpy()
    plain = int8_forward.of_row if by_row else int8_forward.of_state
    for row in {0, rows - 1, *draw.integers(rows, size=6).tolist()}:
        assert_same([got[row]], [plain(x[row], weight)])


@pytest.mark.usefixtures("_products")
def test_sums_beyond_what_float32_holds_are_rounded_once():
    weight, x = torch.full((3, 5000), 0.5), torch.ones(20, 5000)
    weight[1, ::2], weight[2, 0] = -0.5, 0.25
    got = Int8Linear(weight, None, "states")(x).numpy()
    assert_same(got, [int8_forward.of_state(row, weight.numpy()) for row in x.numpy()])
    assert 5000 * 127 * 127 > 2**26


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("inputs", [MAX_INT8_INPUTS, MAX_INT8_INPUTS - 1])
@pytest.mark.parametrize("by", ["states", "rows"])
def test_sums_of_as_many_inputs_as_a_spec_may_have_are_exact_at_their_largest(by, inputs):
    """Weights and inputs of the largest magnitude, so that the sums, in whole or on the way, are the largest, too."""
    alternating, half = torch.ones(inputs), torch.ones(inputs)
    alternating[::2], half[: inputs // 2] = -1, -1
    extreme = torch.stack([torch.ones(inputs), -torch.ones(inputs), alternating, -alternating, half, -half])
    extreme[:, 0] *= 1.0 if by == "states" else 0.5  # so that not all numbers of a row are equal
    linear = Int8Linear(0.5 * extreme, None, by)
    got = linear(extreme).numpy()
    plain = int8_forward.of_state if by == "states" else int8_forward.of_row
    assert_same(got, [plain(row, 0.5 * extreme.numpy()) for row in extreme.numpy()])
    whole, _ = int8_forward.whole_weights(extreme.numpy())
    assert np.abs(whole @ whole.T).max() > 0.999 * 127 * 127 * inputs, "these are the largest there are"


def test_a_convolution_whose_sums_could_leave_32_bits_is_refused_by_name():
    assert (127 + 128) * 127 * MAX_INT8_INPUTS < 2**31 <= (127 + 128) * 127 * (MAX_INT8_INPUTS + 1)
    fits = {"sizes": (16_384, 2, 2), "conv_channels": 1, "conv_width": MAX_INT8_INPUTS // 16_384}
    make_spec("elman", dtype="float32", precision="int8", **fits)
    wide = {**fits, "conv_width": fits["conv_width"] + 1}
    make_spec("elman", dtype="float32", precision="bf16", **wide)
    with pytest.raises(InvalidSpec, match="conv_width: is 5: expected at most 4 for 16384 inputs in int8") as caught:
        make_spec("elman", dtype="float32", precision="int8", **wide)
    assert caught.value.field == "conv_width"


@pytest.mark.usefixtures("_products")
def test_rows_of_zeros_and_of_the_smallest_and_largest_numbers():
    x = torch.tensor([[0.0, 0.0], [1e-45, -1e-45], [1e-38, 0.0], [3e38, -3e38], [0.0, 1e30]])
    weight = torch.tensor([[0.0, 0.0], [1e-45, 0.0], [0.5, 1.0], [-1e-3, 0.0]])
    linear = Int8Linear(weight, torch.arange(4.0), "rows")
    wanted = x.double() @ weight.double().t() + torch.arange(4.0)
    torch.testing.assert_close(linear(x).double(), wanted, rtol=0.02, atol=1e-6)


def _largest_numbers():
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(70, 1100, generator=draw).sub_(0.5).sign_()
    rows = torch.rand(37, 1100, generator=draw).sub_(0.5).sign_()
    rows[3], rows[4] = weight[0], 1
    return Int8Linear(weight, torch.rand(70, generator=draw), "states")(rows).numpy().tobytes().hex()


_PROGRAM = f"""
import torch
from seqloom_server.nn.forward.int8_linear import Int8Linear, onednn_is_exact
{inspect.getsource(_largest_numbers)}
print(onednn_is_exact(), _largest_numbers())
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI", slow("AVX512_CORE"), slow("AVX2_VNNI")])
def test_on_a_processor_of_fewer_instructions_the_bits_are_the_same(isa):
    """oneDNN's own switch, read as it starts."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ONEDNN_MAX_CPU_ISA": isa}
    told = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    exact, numbers = told.stdout.split()
    assert numbers == _largest_numbers()
    assert exact == "False" or "VNNI" in isa or not torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 99))
def test_it_is_near_the_network_in_full(cell, shape, lengths, seed):
    full, network = pair(cell, layers=2, **SHAPES[shape])
    sequences = make_sequences(full.spec, lengths, seed)
    state = make_state(network.spec, len(lengths), seed)
    (hidden, after), (near, near_after) = run(full, sequences, state), run(network, sequences, state)
    assert all(np.abs(part).max() <= 1 for part in near)
    for one, other in zip([*near, *near_after], [*hidden, *after], strict=True):
        assert np.abs(one - other).max() <= 0.03 * max(1.0, np.abs(other).max())
    assert max(np.abs(one - other).max() for one, other in zip(near, hidden, strict=True)) > 1e-4, "it is in full"


@pytest.mark.parametrize("cell", CELLS)
def test_states_stay_within_their_bounds_where_gates_are_shut_or_open(cell):
    spec = make_spec(cell, dtype="float32", sizes=(1, 8, 2), precision="int8")
    parameters = make_network(spec).parameters()
    for name, tensor in parameters.items():
        tensor.mul_(300 if "bias" in name else 100)
    network = Network(spec, parameters, "cpu")
    sequences = [100 * xs for xs in make_sequences(spec, [400] * 5)]
    hidden, _ = run(network, sequences, tuple(np.ones_like(part) for part in zero_state(spec, 5)))
    assert max(np.abs(each).max() for each in hidden) == 1


def test_float64_and_relu_are_refused_by_name():
    with pytest.raises(InvalidSpec, match="precision: is 'int8': float64 has only 'full'"):
        make_spec("gru", precision="int8")
    with pytest.raises(
        InvalidSpec, match="precision: is 'int8': expected another for relu, whose states have no bound"
    ):
        make_spec("elman", "relu", dtype="float32", precision="int8")


@pytest.mark.parametrize("cell", CELLS)
def test_the_weights_stay_in_full_and_the_copies_are_a_quarter(cell):
    full, network = pair(cell, layers=2, sizes=(160, 256, 700), conv_channels=64, conv_width=3)
    assert network.nbytes == full.nbytes
    sequences, state = make_sequences(full.spec, [3]), make_state(network.spec, 1)
    (hidden,), _ = run(network, sequences, state)
    network.outputs(torch.from_numpy(hidden), "labels")
    for name, tensor in network.parameters().items():
        assert torch.equal(tensor, full.parameters()[name])
    # a byte a weight, and for each row of a matrix a scale and a bias
    assert 1.25 * full.nbytes < network.nbytes < 1.255 * full.nbytes + 8 * (7 * 256 * 4 + 700)

"""Specs of small networks of every kind: one that is asked for, or what Hypothesis draws."""

from hypothesis import strategies as st
from seqloom_server.nn.spec import ModelSpec

CELLS = [("elman", "tanh"), ("elman", "relu"), ("gru", "tanh"), ("lstm", "tanh")]


def make_spec(cell="elman", activation="tanh", *, layers=1, dtype="float64", sizes=(3, 5, 7), **more):
    d, h, o = sizes
    return ModelSpec(
        cell=cell,
        activation=activation,
        input_size=d,
        hidden_size=h,
        output_size=o,
        num_layers=layers,
        dtype=dtype,
        **more,
    )


@st.composite
def specs(draw):
    """Small networks of every cell, of 1 to 3 layers."""
    cell, activation = draw(st.sampled_from(CELLS))
    return make_spec(
        cell,
        activation,
        layers=draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        sizes=(draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))),
    )


@st.composite
def shapes(draw):
    """Specs of every cell, of 1 to 3 layers, of one direction or two, behind a convolution or not."""
    cell, activation = draw(st.sampled_from(CELLS))
    front = draw(
        st.sampled_from([{}, {"conv_channels": draw(st.integers(1, 4)), "conv_width": draw(st.integers(1, 3))}])
    )
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(3))
    layers, both = draw(st.integers(1, 3)), draw(st.booleans())
    return make_spec(cell, activation, layers=layers, sizes=sizes, bidirectional=both, **front)

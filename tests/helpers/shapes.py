"""Specs of every shape that a network can have, for Hypothesis to draw."""

from hypothesis import strategies as st

from helpers.ragged_batches import CELLS, make_spec


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

"""Packing against the plain loop: every row of every member at its place, and nothing else."""

import numpy as np
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Member, OutputSpec
from seqloom_server.engine.device import row_packing

SPECS = [OutputSpec("logits"), OutputSpec("labels"), OutputSpec("top_k", 2)]


@st.composite
def member_lists(draw):
    weights, members = KnownWeights(), []
    for number in range(draw(st.integers(0, 9))):
        sizes = draw(st.lists(st.integers(1, 9), max_size=3))
        sequence = make_sequence(weights)
        sequence.output = draw(st.sampled_from(SPECS))
        steps = sum(sizes)
        rows = np.stack([np.full(steps, number), np.arange(steps)], 1).astype("f4")
        parts = np.split(rows, np.cumsum(sizes)[:-1]) if steps else []
        members.append(Member(sequence, parts, steps, 0, None, True, None, True, True, False))
    return members


def packed_by_hand(members):
    """Longest first, step by step: (member, step) of each packed row, and how many members each step has."""
    ranked = sorted((member for member in members if member.steps), key=lambda member: -member.steps)
    rows, sizes = [], []
    for step in range(max((member.steps for member in ranked), default=0)):
        present = [member for member in ranked if member.steps > step]
        rows += [(member, step) for member in present]
        sizes.append(len(present))
    return ranked, rows, sizes


@given(member_lists())
def test_packing_is_that_of_the_plain_loop(members):
    packing = row_packing.pack(members)
    ranked, rows, sizes = packed_by_hand(members)
    assert packing.ranked == ranked
    assert packing.batch_sizes.tolist() == sizes
    if not ranked:
        assert packing.groups == []
        return
    packed = np.concatenate(row_packing.frames(packing))
    if packing.to_packed is not None:
        packed = packed[packing.to_packed]
    expected = [(members.index(member), step) for member, step in rows]
    assert [tuple(row) for row in packed.astype(int).tolist()] == expected
    assert len(packed) == sum(member.steps for member in members), "no padding"


@given(member_lists())
def test_each_member_finds_its_own_rows_among_the_outputs_that_it_wants(members):
    packing = row_packing.pack(members)
    _, rows, _ = packed_by_hand(members)
    seen = []
    for spec, wanting, positions in packing.groups:
        assert all(member.sequence.output == spec for member in wanting)
        picked = rows if positions is None else [rows[position] for position in positions]
        assert picked == [(member, step) for member in wanting for step in range(member.steps)]
        seen += wanting
    assert sorted(map(id, seen)) == sorted(id(member) for member in members if member.steps)


def test_chunks_of_one_member_are_gathered_in_their_order():
    sequence = make_sequence(KnownWeights())
    parts = [np.array([[1.0], [2.0]]), np.array([[3.0]])]
    packing = row_packing.pack([Member(sequence, parts, 3, 0, None, True, None, True, True, False)])
    assert np.concatenate(row_packing.frames(packing)).ravel().tolist() == [1, 2, 3]

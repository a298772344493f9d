"""Copies beside the computing: what comes is what was sent, also while its memory is used again."""

import dataclasses

import numpy as np
import pytest
import torch
from seqloom_server.engine.device.transfers import staging_of


@pytest.fixture
def staging():
    return staging_of("cuda")


def test_what_goes_there_comes_back(staging):
    draw = np.random.default_rng(0)
    transfer = staging.open()
    parts = [draw.standard_normal((n, 5)).astype("f4") for n in (3, 1, 7)]
    parts[1].flags.writeable = False
    rows = transfer.stack(parts)
    states = transfer.stack([draw.standard_normal((2, 1, 4)) for _ in range(3)], axis=1)
    order, none, one = transfer.indices([np.arange(11)[::-1].copy(), None, np.array([4])])
    transfer.begin()
    back, picked, doubled = transfer.end([rows.index_select(0, order), rows.index_select(0, one), states * 2])
    seconds = transfer.wait()
    assert none is None
    assert 0 < seconds < 60
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(back.numpy(), whole[::-1])
    np.testing.assert_array_equal(picked.numpy(), whole[4:5])
    assert doubled.shape == (2, 3, 4)
    assert back.is_pinned()


def test_memory_that_is_used_again_holds_what_was_sent_last(staging):
    # many transfers under way, each of which lets its pinned memory go before the device has read it
    slow = torch.randn(2000, 2000, device="cuda")
    flights = []
    for number in range(64):
        transfer = staging.open()
        rows = transfer.stack([np.full((200, 50), number, "f4")])
        transfer.begin()
        for _ in range(4):
            slow = (slow @ slow).clamp_(-1, 1)
        flights.append((number, transfer, transfer.end([rows + 1])))
    for number, transfer, (result,) in flights:
        transfer.wait()
        assert (result == number + 1).all()


def test_launching_waits_for_nothing(staging):
    busy = torch.randn(4000, 4000, device="cuda")
    for _ in range(3):  # pinned memory and device memory are there already
        transfer = staging.open()
        rows = transfer.stack([np.ones((64, 32), "f4")])
        transfer.begin()
        transfer.end([rows * 2])
        transfer.wait()
    torch.cuda.synchronize()
    for _ in range(200):
        busy = (busy @ busy).clamp_(-1, 1)
    done = torch.cuda.Event()
    done.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        transfer = staging.open()
        rows = transfer.stack([np.ones((64, 32), "f4")])
        (index,) = transfer.indices([np.arange(64)])
        transfer.begin()
        (result,) = transfer.end([rows.index_select(0, index) * 2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done.query(), "the device is still busy with what came before"
    transfer.wait()
    assert (result == 2).all()


def test_a_timer_tells_what_was_launched_since(staging):
    one = torch.randn(3000, 3000, device="cuda")
    seconds = []
    for repeats in (1, 1, 20):
        stop = staging.timer()
        for _ in range(repeats):
            one @ one
        seconds.append(stop())
    assert seconds[2] > 5 * seconds[1]


def test_tf32_is_what_its_name_says_and_only_where_it_is_asked_for():
    from helpers.ragged_batches import make_network, make_spec
    from seqloom_server.nn.forward.network import Network

    exact = make_network(make_spec("elman", dtype="float32", sizes=(64, 512, 10)))
    rows, sizes = torch.randn(320, 64, device="cuda"), torch.full((10,), 32)
    state = (torch.zeros(1, 32, 512, device="cuda"),)
    wanted = exact.advance(rows.cpu(), sizes, (state[0].cpu(),))[0]
    errors = {}
    for precision in ("full", "tf32", "bf16", "full"):
        spec = dataclasses.replace(exact.spec, precision=precision)
        network = Network(spec, exact.parameters(), "cuda")
        with network.products:
            hidden, _ = network.advance(rows, sizes, state)
        errors[precision] = (hidden.float().cpu() - wanted).abs().max().item()
    assert errors["full"] < 1e-5 < errors["tf32"] < 1e-2
    assert errors["tf32"] < errors["bf16"] < 5e-2

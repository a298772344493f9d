"""Torch's threads go by the size of the network, whichever ran before and wherever it was loaded."""

import threading

import torch
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.specs import make_spec
from seqloom_server.engine.models import served_weights
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.nn.forward.network import Network

SMALL, LARGE = make_spec(), make_spec(sizes=(3, 800, 5))


async def test_a_large_network_gets_all_cores_also_when_a_small_one_has_run(tmp_path):
    before = torch.get_num_threads()
    try:
        async with running_engine(tmp_path, SMALL, threads=0) as engine:
            sequence, sink = open_sequence(engine)
            feed(engine, sequence, *make_frames(SMALL, 5), end=True)
            await sink.wait()
        made = []
        thread = threading.Thread(target=lambda: made.append(ServedWeights("m", 1, Network.create(LARGE, 0))))
        thread.start()
        thread.join()
        assert made[0].threads == served_weights._CORES
        assert ServedWeights("m", 1, Network.create(SMALL, 0)).threads == 1
    finally:
        torch.set_num_threads(before)

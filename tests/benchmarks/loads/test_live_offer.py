"""Live streams that come one after the other: what is made of what became of them."""

import pytest

from benchmarks.loads.live_offer import Spoken, summary


def test_streams_are_opened_refused_or_lost():
    opened = Spoken(0, opened=0.1, delays=[0.01, 0.01])
    broken = Spoken(0, opened=0.1, failed="StreamLost")
    result = summary([opened, broken, Spoken(0, refused=0.004), Spoken(0)], 1)
    assert (result["streams"], result["opened"], result["refused"], result["lost"]) == (4, 2, 1, 2)
    assert result["refused_p99_ms"] == pytest.approx(4)


def test_those_that_were_there_first_are_told_apart():
    streams = [Spoken(0, opened=0.1, delays=[0.01]), Spoken(1, opened=0.1, delays=[1.0], behind=[0.003])]
    result = summary(streams, 1)
    assert result["first_p99_ms"] == pytest.approx(10)
    assert result["p50_ms"] == pytest.approx(505)
    assert result["sent_late_p99_ms"] == pytest.approx(3)


def test_without_an_open_stream_there_are_no_delays():
    assert "p99_ms" not in summary([Spoken(0, refused=0.01)], 1)

"""The log as JSON: one object a line whatever is logged, with the fields of a call and nothing else of it."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.logs import CALL_FIELDS, JsonFormatter


def logged(act) -> list[dict]:
    """What a logger writes in an act on it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("seqloom_server.test")
    logger.addHandler(handler)
    act(logger)
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


@given(st.text())
def test_any_text_is_one_line(text):
    (line,) = logged(lambda logger: logger.info("%s", text))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "seqloom_server.test", "message": text}


def test_a_call_has_its_fields_and_no_other():
    fields = dict.fromkeys(CALL_FIELDS, "x") | {"secret": "y", "payload": "z"}
    (line,) = logged(lambda logger: logger.info("a call", extra=fields))
    assert {name: line[name] for name in CALL_FIELDS} == dict.fromkeys(CALL_FIELDS, "x")
    assert {"secret", "payload"}.isdisjoint(line)


def test_a_traceback_is_in_the_line():
    def act(logger):
        with pytest.raises(ZeroDivisionError) as caught:
            _ = 1 / 0
        logger.error("it failed", exc_info=caught.value)

    (line,) = logged(act)
    assert line["traceback"].startswith("Traceback")
    assert "ZeroDivisionError" in line["traceback"]

"""The table from reasons to statuses, and what travels."""

import pytest
from google.rpc import code_pb2
from helpers.raw_calls import failure_of
from seqloom import errors as sdk_errors
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.rpc.calls.status import CODES, status_of

SHAPES = [
    {},
    {"field": "sequences.rows"},
    {"retry_after": 0.25},
    {"field": "entries.frames", "retry_after": 2.0},
]


def test_every_reason_has_a_code_that_is_an_error():
    assert CODES.keys() == set(Reason)
    assert all(code in code_pb2.Code.values() and code != code_pb2.OK for code in CODES.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reason", Reason)
def test_every_error_becomes_a_rich_status_that_the_sdk_reads(reason, shape):
    status = status_of(ServerError(reason, "what was wrong", **shape), "id-1")
    failure = failure_of(status)
    assert (failure.reason, failure.domain, failure.request_id) == (reason.value, "seqloom", "id-1")
    assert failure.message == "what was wrong"
    assert failure.fields == ([shape["field"]] if "field" in shape else [])
    assert failure.retry_after == shape.get("retry_after", 1.0 if reason is Reason.OVERLOADED else None)
    error = sdk_errors.from_status(status)
    assert (error.message, error.reason, error.request_id) == ("what was wrong", reason.value, "id-1")


EXPECTED = {
    Reason.INVALID_FIELD: sdk_errors.InvalidArgument,
    Reason.OVER_LIMIT: sdk_errors.InvalidArgument,
    Reason.MALFORMED_MESSAGE: sdk_errors.InvalidArgument,
    Reason.MODEL_NOT_FOUND: sdk_errors.NotFound,
    Reason.MODEL_EXISTS: sdk_errors.AlreadyExists,
    Reason.VERSION_MISMATCH: sdk_errors.VersionMismatch,
    Reason.OVERLOADED: sdk_errors.Overloaded,
    Reason.SESSION_IDLE: sdk_errors.DeadlineExceeded,
    Reason.DEADLINE_EXCEEDED: sdk_errors.DeadlineExceeded,
    Reason.SHUTTING_DOWN: sdk_errors.Unavailable,
    Reason.ENGINE_DEAD: sdk_errors.Unavailable,
    Reason.CANCELLED: sdk_errors.Cancelled,
    Reason.INTERNAL: sdk_errors.Internal,
}


@pytest.mark.parametrize("reason", EXPECTED)
def test_the_sdk_raises_the_error_of_the_kind_that_the_reason_means(reason):
    assert type(sdk_errors.from_status(status_of(ServerError(reason, "no"), ""))) is EXPECTED[reason]


@pytest.mark.parametrize("character", ["x", "早", "\n", "\0", "%", "\ud800"])
def test_a_status_stays_small_whatever_is_quoted_in_it(character):
    error = invalid("spec." + character * 100_000, character * 100_000)
    status = status_of(error, "id-1")
    percent_encoded = 3 * len(status.message.encode())  # in the worst case, beside the status itself in base64
    assert len(status.SerializeToString()) * 4 / 3 + percent_encoded < 8192
    assert len(status.SerializeToString()) < 4096
    assert failure_of(status).reason == "INVALID_FIELD"

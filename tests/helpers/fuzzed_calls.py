"""Calls of bytes on a real channel, many at once, and whether what comes back is a proper status of ours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from seqloom_server.errors import Reason
from seqloom_server.rpc.calls.status import CODES

_MAX_STATUS_BYTES = 4096


@dataclass(frozen=True)
class FuzzedCall:
    """One call. method: its descriptor. messages: the bytes of each, in order. cancelled: whether it is cut short."""

    method: MethodDescriptor
    messages: tuple[bytes, ...]
    cancelled: bool = False

    @property
    def name(self) -> str:
        return f"{self.method.containing_service.full_name}/{self.method.name}"

    def parsed(self) -> list[Message | None]:
        """The messages; None for bytes that are none."""
        cls = GetMessageClass(self.method.input_type)
        found: list[Message | None] = []
        for raw in self.messages:
            try:
                found.append(cls.FromString(raw))
            except DecodeError:
                found.append(None)
        return found

    def __str__(self) -> str:
        texts = [f"{raw.hex()}\n{message}" for raw, message in zip(self.messages, self.parsed(), strict=True)]
        return "\n".join([f"{self.name}{', cancelled' if self.cancelled else ''}", *texts])


@dataclass
class Answer:
    """What came back. code: of gRPC. status: the rich one, if any. replies: messages. details: gRPC's text."""

    code: grpc.StatusCode
    details: str = ""
    status: status_pb2.Status | None = None
    replies: list[Message] = field(default_factory=list)


def send(channel: grpc.Channel, calls: Sequence[FuzzedCall], timeout: Callable[[FuzzedCall], float]) -> list[Answer]:
    """Makes all calls at once; returns what came back, in order. timeout: of a call."""
    pending = [_begin(channel, call, timeout(call)) for call in calls]
    for call, one in zip(calls, pending, strict=True):
        if call.cancelled:
            one.cancel()
    return [_answer(call, one) for call, one in zip(calls, pending, strict=True)]


def _begin(channel: grpc.Channel, call: FuzzedCall, timeout: float) -> Any:
    streams = call.method.client_streaming, call.method.server_streaming
    makers: dict[tuple[bool, bool], Callable[[str], Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    method = makers[streams](f"/{call.name}")
    request = iter(call.messages) if streams[0] else call.messages[0]
    return method(request, timeout=timeout) if streams[1] else method.future(request, timeout=timeout)


def _answer(call: FuzzedCall, pending: Any) -> Answer:
    replies: list[bytes] = []
    try:
        if call.method.server_streaming:
            replies.extend(pending)
        else:
            replies.append(pending.result())
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    code = pending.code()
    rich = None
    if code is not grpc.StatusCode.OK and pending.trailing_metadata():
        try:
            rich = rpc_status.from_call(pending)
        except ValueError:  # the two codes differ: a call that ends here just as the server's answer comes has both
            if code is not grpc.StatusCode.DEADLINE_EXCEEDED and not call.cancelled:
                raise
    cls = GetMessageClass(call.method.output_type)
    return Answer(code, pending.details() or "", rich, [cls.FromString(raw) for raw in replies])


def wrong(call: FuzzedCall, answer: Answer) -> str:
    """What is wrong with an answer, by docs/protocol.md's table of errors; "" if nothing is."""
    for status in errors_in(answer):
        if problem := _wrong_status(status):
            return f"an entry: {problem}"
    if answer.code is grpc.StatusCode.OK:
        if None in call.parsed() and not call.method.client_streaming:
            return "bytes that are no message were taken"
        return ""
    if call.cancelled and answer.code is grpc.StatusCode.CANCELLED:
        return ""
    if answer.status is None:
        if answer.code is grpc.StatusCode.DEADLINE_EXCEEDED:  # as the caller's own grpcio says
            return ""
        if call.method.full_name.startswith("seqloom"):
            return f"{answer.code.name} without a rich status: {answer.details}"
        bad = answer.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        return f"{answer.code.name}: {answer.details}" if bad else ""
    if problem := _wrong_status(answer.status):
        return problem
    if not call.method.client_streaming and None in call.parsed():
        reason = _reason(answer.status)
        return "" if reason == Reason.MALFORMED_MESSAGE else f"{reason} for bytes that are no message"
    return ""


def errors_in(answer: Answer) -> Iterator[status_pb2.Status]:
    """The errors of single entries."""
    for reply in answer.replies:
        yield from _statuses(reply)


def _statuses(message: Message) -> Iterator[status_pb2.Status]:
    for found, value in message.ListFields():
        if found.message_type is None or (found.message_type.GetOptions().map_entry):
            continue
        for part in value if found.is_repeated else [value]:
            if isinstance(part, status_pb2.Status):
                yield part
            else:
                yield from _statuses(part)


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


def _wrong_status(status: status_pb2.Status) -> str:
    reason, name = _reason(status), code_pb2.Code.Name(status.code)
    if reason not in Reason.__members__:
        return f"{name} with the reason {reason!r}: {status.message}"
    if status.code != CODES[Reason[reason]] or Reason[reason] in (Reason.INTERNAL, Reason.STORAGE_FAILED):
        return f"{name} with the reason {reason}: {status.message}"
    if reason == Reason.OVERLOADED and not any(
        detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details
    ):
        return "OVERLOADED without RetryInfo"
    if status.ByteSize() > _MAX_STATUS_BYTES:
        return f"a status of {status.ByteSize()} bytes"
    return "" if status.message else f"{reason} without a text"

"""The gRPC interceptor of every call: gives it an id, lets it in, parses messages, maps errors to statuses, counts."""

import asyncio
import contextvars
import functools
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.errors import Reason, ServerError, without_frames
from seqloom_server.memory import is_memory_short
from seqloom_server.rpc.calls.open_calls import OpenCalls
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.security.gate import Gate, Metadata
from seqloom_server.rpc.security.token_use import TokenUse

log = logging.getLogger(__name__)
calls_log = logging.getLogger("seqloom_server.calls")

T = TypeVar("T")

# messages of any type: one interceptor serves all methods
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[[Any, Context], Any]

_PROCESS_ID = secrets.token_hex(4)
_numbers = itertools.count(1)


@dataclass(slots=True)
class _Call:
    number: int
    model: str = ""
    use: TokenUse | None = None


_current: contextvars.ContextVar[_Call] = contextvars.ContextVar("call")


def request_id() -> str:
    """Returns the id of the current call, as it is logged; "" outside of a call."""
    call = _current.get(None)
    return "" if call is None else f"{_PROCESS_ID}-{call.number:x}"


def set_model(name: str) -> None:
    """Sets the model that the current call is counted for in the metrics: the name of a served model."""
    call = _current.get(None)
    if call is not None:
        call.model = name


def token_use() -> TokenUse | None:
    """Returns what the current call's token uses; None where the server asks for no tokens."""
    call = _current.get(None)
    return None if call is None else call.use


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the handler of each method; a wrapped handler is kept for all later calls.

    open_calls: bounds them. gate: lets calls in by their tokens; None lets all in. logs_calls: whether each call is
    logged, at its end.
    """

    def __init__(
        self,
        request_metrics: RequestMetrics,
        open_calls: OpenCalls,
        gate: Gate | None = None,
        *,
        logs_calls: bool = False,
    ) -> None:
        self._request_metrics = request_metrics
        self._open_calls = open_calls
        self._gate = gate
        self._logs_calls = logs_calls
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # of calls with a good token, and of the others

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # gRPC answers UNIMPLEMENTED
                return handler
            name = method.lstrip("/")
            wrapped = self._wrapped[method] = self._wrap(name, handler), self._refusing(name)
        lets_in = self._gate is None or self._gate.knows(handler_call_details.invocation_metadata or ())
        return wrapped[0 if lets_in else 1]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that takes bytes and parses them itself, so that malformed messages get a rich status.

        See grpc.RpcMethodHandler for the four kinds.
        """
        kind = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
        deserialize = handler.request_deserializer
        assert deserialize is not None, "a handler of generated code has one"
        parse = functools.partial(_parse, deserialize)
        behaviour: Behaviour = getattr(handler, kind)

        async def handle(request: Any, context: Context) -> object:
            address = self._open_calls.take(context)
            try:
                parsed = _parse_each(parse, request) if handler.request_streaming else parse(request)
                result = behaviour(parsed, context)
                if not hasattr(result, "__aiter__"):
                    return await result
                async for response in result:
                    await context.write(response)
                return None
            finally:
                self._open_calls.give(address)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        serialize = handler.response_serializer
        assert serialize is not None, "a handler of generated code has one"
        wrapped: Handler = make(
            functools.partial(self._run, method, handle),
            response_serializer=functools.partial(_serialize, serialize),
        )
        return wrapped

    def _refusing(self, method: str) -> Handler:
        """Returns a handler that refuses a call without a good token, whatever its kind.

        It is one of streams, so that nothing is read: gRPC reads the request of other kinds before it calls the
        handler, and would hold those of callers who may send nothing.
        """

        async def refuse(_: object, context: Context) -> NoReturn:
            assert self._gate is not None
            await self._gate.refuse(*_caller(context))

        return grpc.stream_stream_rpc_method_handler(functools.partial(self._run, method, refuse, admits=False))

    async def _run(
        self, method: str, handle: Behaviour, request: object, context: Context, admits: bool = True
    ) -> object:
        call = _Call(next(_numbers))
        _current.set(call)
        start = time.perf_counter()
        code = "OK"
        try:
            if self._gate is None or not admits:
                return await handle(request, context)
            call.use = await self._gate.admit(*_caller(context))
            self._gate.check_scope(call.use, method)
            return await self._gate.watched(call.use, method, handle(request, context))
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            code = "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"
            raise
        except grpc.aio.AbortError:
            code = _name(context.code())
            raise
        except grpc.aio.InternalError:  # the caller disconnected while its response was written
            code = "CANCELLED"
            raise asyncio.CancelledError from None
        except Exception as error:
            status = rpc_status.to_status(_failed(method, error, self._request_metrics))
            code = status.code.name
            try:
                await context.abort(status.code, status.details, status.trailing_metadata)
            except grpc.aio.InternalError:  # the caller disconnected meanwhile
                code = "CANCELLED"
                raise asyncio.CancelledError from None
        finally:
            seconds = time.perf_counter() - start
            self._request_metrics.count(method, call.model, code, seconds)
            if self._logs_calls:
                _log_call(call, method, code, seconds)


def _caller(context: Context) -> tuple[Metadata, str]:
    """Returns what the gate decides by."""
    return context.invocation_metadata() or (), str(context.peer())


def _log_call(call: _Call, method: str, code: str, seconds: float) -> None:
    fields = {"request_id": request_id(), "method": method, "code": code, "seconds": round(seconds, 6)}
    if call.use is not None:
        fields["token"] = call.use.token.name
    calls_log.info("%s %s", method, code, extra=fields)


async def count_entry(method: str, request_metrics: RequestMetrics, work: Awaitable[T]) -> T | status_pb2.Status:
    """Awaits one of the many calls that a stream carries; returns its result, or the status of its error.

    It has a request id of its own and is counted as a call of the method; called in a task of its own.
    """
    call = _Call(next(_numbers), use=token_use())
    _current.set(call)
    start = time.perf_counter()
    code = "OK"
    try:
        return await work
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    except Exception as error:
        status = _failed(method, error, request_metrics)
        code = code_pb2.Code.Name(status.code)
        return status
    finally:
        request_metrics.count(method, call.model, code, time.perf_counter() - start)


def _failed(method: str, error: Exception, request_metrics: RequestMetrics) -> status_pb2.Status:
    """Logs and counts the error of a call where that is due; returns its status."""
    if is_memory_short(error):
        log.error("request %s: %s found no memory: %s", request_id(), method, error)
        error = memory_exhausted("the call")
    elif not isinstance(error, ServerError):
        log.error("request %s: %s failed", request_id(), method, exc_info=error)
        error = ServerError(Reason.INTERNAL, f"internal error: see the server's log for request {request_id()}")
    elif error.reason in (Reason.INTERNAL, Reason.STORAGE_FAILED):  # the traceback was logged where it was raised
        log.error("request %s: %s: %s", request_id(), method, error)
    request_metrics.rejected(error)
    return status_of(without_frames(error), request_id())


_ARITY = {False: "unary", True: "stream"}


def _serialize(serialize: Callable[[T], bytes], response: T | bytes) -> bytes:
    """Serializes a response; some handlers return serialized bytes."""
    return response if isinstance(response, bytes) else serialize(response)


def _parse(parse: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return parse(raw)
    except DecodeError:
        name = getattr(getattr(parse, "__self__", None), "__name__", "message")
        raise ServerError(Reason.MALFORMED_MESSAGE, f"malformed request: {len(raw)} bytes are not a {name}") from None


async def _parse_each(parse: Callable[[bytes], T], requests: AsyncIterator[bytes]) -> AsyncIterator[T]:
    async for raw in requests:
        yield parse(raw)


def _name(code: object) -> str:
    """Returns the name of a grpc.StatusCode, or of its number, which an aborted context has."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")

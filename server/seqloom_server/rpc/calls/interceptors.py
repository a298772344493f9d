"""The gRPC interceptor of every call: assigns request ids, parses messages, maps errors to statuses, counts metrics."""

import asyncio
import contextvars
import functools
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from seqloom_server.errors import Reason, ServerError
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.status import status_of

log = logging.getLogger(__name__)

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


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the handler of each method; a wrapped handler is kept for all later calls."""

    def __init__(self, request_metrics: RequestMetrics) -> None:
        self._request_metrics = request_metrics
        self._wrapped: dict[str, Handler] = {}

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
            wrapped = self._wrapped[method] = self._wrap(method.lstrip("/"), handler)
        return wrapped

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
            parsed = _parse_each(parse, request) if handler.request_streaming else parse(request)
            result = behaviour(parsed, context)
            if not hasattr(result, "__aiter__"):
                return await result
            async for response in result:
                await context.write(response)
            return None

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        serialize = handler.response_serializer
        assert serialize is not None, "a handler of generated code has one"
        wrapped: Handler = make(
            functools.partial(self._run, method, handle), response_serializer=functools.partial(_serialize, serialize)
        )
        return wrapped

    async def _run(self, method: str, handle: Behaviour, request: object, context: Context) -> object:
        call = _Call(next(_numbers))
        _current.set(call)
        start = time.perf_counter()
        code = "OK"
        try:
            return await handle(request, context)
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
            await context.abort(status.code, status.details, status.trailing_metadata)
        finally:
            self._request_metrics.count(method, call.model, code, time.perf_counter() - start)


async def count_entry(method: str, request_metrics: RequestMetrics, work: Awaitable[T]) -> T | status_pb2.Status:
    """Awaits one of the many calls that a stream carries; returns its result, or the status of its error.

    It has a request id of its own and is counted as a call of the method; called in a task of its own.
    """
    call = _Call(next(_numbers))
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
    if not isinstance(error, ServerError):
        log.error("request %s: %s failed", request_id(), method, exc_info=error)
        error = ServerError(Reason.INTERNAL, f"internal error: see the server's log for request {request_id()}")
    elif error.reason in (Reason.INTERNAL, Reason.STORAGE_FAILED):  # the traceback was logged where it was raised
        log.error("request %s: %s: %s", request_id(), method, error)
    request_metrics.rejected(error)
    return status_of(error, request_id())


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

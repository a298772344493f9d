"""The gRPC channel of a client, with its stubs and the calls that all its sessions and all its runs share."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import cast

import grpc

from seqloom import _forks
from seqloom._config import Config
from seqloom._connection.run_stream import RunCallsCall, RunStream
from seqloom._connection.service_stubs import ModelStub, TrainingStub
from seqloom._streaming.shared_call import SharedCall, StreamCall
from seqloom.v1 import (
    inference_service_pb2,
    model_service_pb2_grpc,
    training_service_pb2,
    training_service_pb2_grpc,
)

_STREAM_INFER = f"/{inference_service_pb2.DESCRIPTOR.services_by_name['InferenceService'].full_name}/StreamInfer"
_RUN_CALLS = f"/{training_service_pb2.DESCRIPTOR.services_by_name['TrainingService'].full_name}/RunCalls"


class Channel:
    """The gRPC channel of a client. models, training: stubs. shared: the call that all sessions share; run_stream: that
    all runs share.
    """

    def __init__(self, config: Config) -> None:
        """Raises InvalidArgument in a fork of a process that used gRPC, and if a file of `tls` cannot be read."""
        _forks.mark_grpc_used()
        self.loop = asyncio.get_running_loop()
        self._watcher: asyncio.Task[None] | None = None
        options = config.channel_options()
        credentials = config.credentials()
        self._channel = (
            grpc.aio.insecure_channel(config.address, options)
            if credentials is None
            else grpc.aio.secure_channel(config.address, credentials, options)
        )
        self.models: ModelStub = model_service_pb2_grpc.ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.training: TrainingStub = training_service_pb2_grpc.TrainingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        # not the stubs' methods, which take messages: the shared calls send encoded bytes
        stream_infer = self._channel.stream_stream(
            _STREAM_INFER,
            request_serializer=None,
            response_deserializer=inference_service_pb2.StreamInferResponse.FromString,
        )
        self.shared = SharedCall(lambda: cast(StreamCall, stream_infer(None, metadata=config.metadata())))
        run_calls = self._channel.stream_stream(
            _RUN_CALLS,
            request_serializer=None,
            response_deserializer=training_service_pb2.RunCallsResponse.FromString,
        )
        self.run_stream = RunStream(lambda: cast(RunCallsCall, run_calls(None, metadata=config.metadata())))

    @property
    def connected(self) -> bool:
        """Whether the channel is connected. If not, the next call connects it."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    def watch(self, lost: weakref.WeakMethod[Callable[[], None]]) -> None:
        """Calls lost() whenever the connection was lost, also if another call has restored it since.

        Ends with the method's object, which nothing here keeps alive.
        """
        if self._watcher is None:
            owner = getattr(lost(), "__self__", self)
            self._watcher = self.loop.create_task(_watch(self._channel, lost))
            weakref.finalize(owner, _cancel, self.loop, self._watcher).atexit = False

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await self.shared.close()
        await self.run_stream.close()
        await self._channel.close(None)


async def _watch(channel: grpc.aio.Channel, lost: weakref.WeakMethod[Callable[[], None]]) -> None:
    while True:
        state = channel.get_state()
        await channel.wait_for_state_change(state)
        call = lost()
        if call is None:
            return
        if state is grpc.ChannelConnectivity.READY:
            call()
        del call


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and has cancelled its tasks
        loop.call_soon_threadsafe(task.cancel)

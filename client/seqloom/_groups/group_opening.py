"""What a caller asks of a new stream group, checked, and how it is opened on a server."""

from dataclasses import dataclass
from typing import Self

from seqloom._groups.group_session import GroupSession
from seqloom._groups.resuming_group import ResumingGroup
from seqloom._messages import arguments
from seqloom._streaming.session import EntryQueue
from seqloom._streaming.shared_call import SharedCall
from seqloom._streaming.stream_budget import StreamBudget, state_bytes, step_bytes
from seqloom.errors import Cancelled, InvalidArgument
from seqloom.types import ModelSpec, Outputs, State, integer
from seqloom.v1 import inference_service_pb2

_MAX_STREAMS = 2**31 - 1  # of a group; the server accepts fewer


@dataclass(frozen=True, slots=True)
class GroupOpening:
    """A checked opening. message: of the group, but for its initial states, which calls of their own set."""

    message: inference_service_pb2.OpenGroup
    outputs: Outputs
    initial_state: State | None
    resume_seconds: float | None

    @classmethod
    def checked(
        cls,
        model: str,
        n: int,
        outputs: Outputs,
        initial_state: State | None,
        weights_version: int | None,
        snapshot_interval: int,
        rate: float,
        resume_seconds: float | None,
    ) -> Self:
        """Returns the opening of a group of n streams. rate: 0 for none. Raises InvalidArgument.

        resume_seconds: for which it is tried to resume it after a failure; None if it should fail with its call.
        """
        count = integer(n, "n")
        if count > _MAX_STREAMS:
            raise InvalidArgument(f"n: is {count}: expected at most {_MAX_STREAMS}")
        message = inference_service_pb2.OpenGroup(
            model=model,
            streams=count,
            output=arguments.output_spec(outputs),
            weights_version=arguments.version(weights_version),
            snapshot_interval_steps=arguments.interval(snapshot_interval),
            steps_per_second=rate,
        )
        return cls(message, outputs, initial_state, resume_seconds)

    async def open(self, call: SharedCall, spec: ModelSpec, deadline: float) -> GroupSession:
        """Opens the group, of a model of this specification. Raises InvalidArgument and the server's errors."""
        count, states = self.message.streams, None
        if self.initial_state is not None:
            states = arguments.state_arrays(self.initial_state, spec, count, "initial_state")
            arguments.check_numbers(states, spec, "initial_state")

        def make(queue: EntryQueue, number: int, budget: StreamBudget) -> GroupSession:
            size = step_bytes(spec, self.outputs)
            if self.resume_seconds is None:
                return GroupSession(queue, number, count, size, budget)
            return ResumingGroup(
                queue,
                number,
                size,
                budget,
                calls=call,
                opening=self.message,
                state_bytes=state_bytes(spec),
                seconds=self.resume_seconds,
            )

        group = await call.open_group(make, self.message, deadline)
        if states is not None:
            try:
                await group.begin_with(states, deadline)
            except BaseException:
                group.cancel(Cancelled("opening the group was cancelled", reason="CANCELLED"))
                raise
        return group

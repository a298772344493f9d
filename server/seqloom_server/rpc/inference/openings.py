"""Opens the sessions and groups of a StreamInfer call in the engine, as the entries that open them ask."""

from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.session_window import SessionWindow, empty_frames
from seqloom_server.engine.core.stream_group import StreamGroup
from seqloom_server.engine.engine import Engine
from seqloom_server.rpc.inference.group_opening import GroupOpening
from seqloom_server.rpc.inference.group_session import GroupSession
from seqloom_server.rpc.inference.session_opening import SessionOpening, shown_steps
from seqloom_server.rpc.inference.stream_session import SessionOwner, StreamSession


class Openings:
    """Opens what one caller asks for. owner: the call that carries it."""

    def __init__(self, engine: Engine, config: ServerConfig, owner: SessionOwner, caller: str) -> None:
        self._engine = engine
        self._config = config
        self._owner = owner
        self._caller = caller

    def session(self, entry: inference_service_pb2.SessionRequest, now: float, *, refuses: bool) -> StreamSession:
        """Opens a session. refuses: whether others were refused a moment ago. Raises ServerError."""
        request = entry.open
        weights = self._engine.registry.current(request.model, request.weights_version)
        spec = weights.network.spec
        opening = SessionOpening.checked(entry, spec, self._config)
        session = StreamSession(self._owner, entry.session, spec, opening)
        sequence = self._engine.open(
            weights,
            Op.INFER if opening.whole else Op.STREAM,
            opening.output,
            session,
            initial_state=opening.initial_state,
            deadline=None if opening.timeout is None else now + opening.timeout,
            snapshot_interval=opening.snapshot_interval,
            caller=self._caller,
            rate=opening.rate,
            total_steps=opening.total_steps,
            likely_steps=shown_steps(entry, opening) if refuses else 0,
        )
        session.window = SessionWindow(sequence, opening.window_steps, empty_frames(spec.input_size, spec.dtype))
        session.model, session.opened_at = weights.model, now
        session.opened = weights.version, opening.window_steps
        return session

    def group(self, entry: inference_service_pb2.GroupRequest, now: float) -> GroupSession:
        """Opens a group. Raises ServerError."""
        request = entry.open
        weights = self._engine.registry.current(request.model, request.weights_version)
        spec = weights.network.spec
        opening = GroupOpening.checked(request, spec, self._config)
        most_streams = min(self._config.max_batch_steps, weights.max_cells)
        session = GroupSession(self._owner, entry.group, spec, opening, most_streams)
        sequence = self._engine.open(
            weights,
            Op.STREAM,
            opening.output,
            session,
            deadline=None if opening.timeout is None else now + opening.timeout,
            caller=self._caller,
            rate=opening.rate,
            group=StreamGroup(opening.count, opening.initial_state),
        )
        session.window = SessionWindow(sequence, opening.window_steps, empty_frames(spec.input_size, spec.dtype))
        session.model, session.opened_at = weights.model, now
        session.opened = weights.version, opening.window_steps
        return session

"""Opens the sessions and groups of a StreamInfer call in the engine, as the entries that open them ask."""

from typing import Any

from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Op, OutputSpec, Sequence, Sink
from seqloom_server.engine.core.session_window import SessionWindow, empty_frames
from seqloom_server.engine.core.stream_group import StreamGroup
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.rpc.inference.group_opening import GroupOpening
from seqloom_server.rpc.inference.group_session import GroupSession
from seqloom_server.rpc.inference.outgoing import Opened
from seqloom_server.rpc.inference.session_opening import SessionOpening, shown_steps
from seqloom_server.rpc.inference.stream_session import SessionOwner, StreamSession
from seqloom_server.rpc.security.token_use import TokenUse


class Openings:
    """Opens what one caller asks for. owner: the call that carries it. use: by the caller's token, None without one."""

    def __init__(
        self, engine: Engine, config: ServerConfig, owner: SessionOwner, caller: str, use: TokenUse | None = None
    ) -> None:
        self._engine = engine
        self._config = config
        self._owner = owner
        self._caller = caller
        self._use = use

    def session(self, entry: inference_service_pb2.SessionRequest, now: float, *, refuses: bool) -> StreamSession:
        """Opens a session. refuses: whether others were refused a moment ago. Raises ServerError."""
        request = entry.open
        weights = self._weights(request)
        spec = weights.network.spec
        opening = SessionOpening.checked(entry, spec, self._config)
        session = StreamSession(self._owner, entry.session, spec, opening)
        session.begun = opening.whole and not entry.end
        sequence = self._open(
            session,
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
            resumed=opening.resumed,
        )
        empty = empty_frames(spec.input_size, spec.dtype)
        session.window = SessionWindow(sequence, opening.window_steps, empty, opening.resumed or 0)
        session.model, session.opened_at = weights.model, now
        session.opened = Opened(weights.version, opening.window_steps, weights.fingerprint)
        return session

    def group(self, entry: inference_service_pb2.GroupRequest, now: float) -> GroupSession:
        """Opens a group. Raises ServerError."""
        request = entry.open
        weights = self._weights(request)
        spec = weights.network.spec
        opening = GroupOpening.checked(request, spec, self._config)
        session = GroupSession(self._owner, entry.group, spec, opening)
        sequence = self._open(
            session,
            weights,
            Op.STREAM,
            opening.output,
            session,
            deadline=None if opening.timeout is None else now + opening.timeout,
            caller=self._caller,
            rate=opening.rate,
            group=StreamGroup(opening.count, opening.initial_state),
            resumed=None if opening.resumed is None else 0,  # the steps of its streams are counted by the session
        )
        session.window = SessionWindow(sequence, opening.window_steps, empty_frames(spec.input_size, spec.dtype))
        session.model, session.opened_at = weights.model, now
        session.opened = Opened(weights.version, opening.window_steps, weights.fingerprint)
        return session

    def release(self, session: StreamSession | GroupSession) -> None:
        """Takes back what a session that is gone used of the token's limits."""
        if self._use is not None:
            self._use.close(session.streams)
            if session.begun:
                self._use.finish()

    def _open(
        self,
        session: StreamSession | GroupSession,
        weights: ServedWeights,
        op: Op,
        output: OutputSpec,
        sink: Sink,
        **more: Any,
    ) -> Sequence:
        """Opens a sequence within the limits of the caller's token. Raises ServerError."""
        use = self._use
        if use is None:
            return self._engine.open(weights, op, output, sink, **more)
        if session.streams:
            use.open(session.streams)
        else:
            use.check_steps()
        if session.begun:
            use.begin(self._config.max_sequences_per_request)
        try:
            return self._engine.open(weights, op, output, sink, **more)
        except BaseException:
            self.release(session)
            raise

    def _weights(self, request: inference_service_pb2.OpenSession | inference_service_pb2.OpenGroup) -> ServedWeights:
        """Returns the weights that are asked for. Raises ServerError."""
        fingerprint = request.resumed.fingerprint if request.HasField("resumed") else b""
        if fingerprint:
            return self._engine.registry.resumed(request.model, fingerprint)
        return self._engine.registry.current(request.model, request.weights_version)

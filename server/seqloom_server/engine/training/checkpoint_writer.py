"""What of a run is durable: its checkpoints, written and read one at a time, and how far the last one reaches."""

import asyncio
import logging
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from seqloom_server.engine.core.worker_thread import in_worker_thread
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.engine.training.checkpoint_files import CallsDone, RunMeta, RunState, StoredReply
from seqloom_server.engine.training.numbered_calls import KeptReply, NumberedCalls
from seqloom_server.engine.training.replies import to_json
from seqloom_server.engine.training.run_weights import Snapshot
from seqloom_server.engine.training.step_journal import StepJournal
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.spec import ModelSpec

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Those of one run. step, calls: how far the last one reaches; calls by client. names: of those with one, in order.

    done: the calls that are in the checkpoint that the run was made of.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        meta: RunMeta,
        spec: ModelSpec,
        journal: StepJournal,
        step: int,
        done: dict[str, int],
    ) -> None:
        self.names: list[str] = []
        self.step = step
        self.calls = dict(done)
        self._folder = folder
        self._meta = meta
        self._spec = spec
        self._journal = journal
        self._writing = asyncio.Lock()
        self._waiting: tuple[Snapshot, NumberedCalls] | None = None  # to be written when the one before it is
        self._writer: asyncio.Task[None] | None = None
        self._ended: ServerError | None = None

    async def write(
        self, snapshot: Snapshot, calls: NumberedCalls, name: str = "", reply: KeptReply | None = None
    ) -> None:
        """Writes one, also under a name where one is given. reply: of the call that asks for it. Raises ServerError."""
        async with self.turn():
            await self.write_next(snapshot, calls, name, reply)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While this lasts nothing else is written. Raises ServerError where the run has ended."""
        async with self._writing:
            if self._ended is not None:
                raise self._ended
            yield

    async def write_next(
        self, snapshot: Snapshot, calls: NumberedCalls, name: str = "", reply: KeptReply | None = None
    ) -> None:
        """Does what write() does, for who has the turn."""
        if reply is None and any(number > snapshot.done.get(client, 0) for client, number in self.calls.items()):
            return  # one in the background that a later one has overtaken
        kept = calls.kept(snapshot.done)
        if reply is not None:
            kept.append(reply)
        await in_worker_thread("runs", self._save, snapshot, kept, name)
        if name:
            self.names = sorted({*self.names, name})
        self.step, self.calls = snapshot.step, snapshot.done

    def write_soon(self, snapshot: Snapshot, calls: NumberedCalls) -> None:
        """Writes one in the background; one that still waits gives way to it."""
        self._waiting = snapshot, calls
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write_waiting())

    async def settle(self) -> None:
        """Returns when nothing is being written in the background; what waits for that is dropped."""
        self._waiting = None
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def end(self, error: ServerError) -> None:
        """After this nothing is written in the run's folder any more; who tries gets the error."""
        self._ended = error
        await self.settle()
        async with self._writing:
            pass

    async def read(self, name: str) -> Snapshot:
        """Returns what the checkpoint of that name holds. Raises ServerError CHECKPOINT_NOT_FOUND or _BROKEN."""
        try:
            state = await in_worker_thread("runs", checkpoint_files.load_named, self._folder, name)
        except ServerError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise ServerError(Reason.CHECKPOINT_NOT_FOUND, f"there is no checkpoint {name!r}", field="name") from None
        if state.spec != self._spec or state.meta.optimizer != self._meta.optimizer:
            what = f"checkpoint {name!r} is of another network or optimizer"
            raise ServerError(Reason.CHECKPOINT_BROKEN, what)
        return snapshot_of(state)

    async def forget_steps(self) -> None:
        """Drops what the journal has of steps, as the run goes back behind them. Raises ServerError."""
        self._waiting = None
        await in_worker_thread("runs", self._journal.clear)

    async def _write_waiting(self) -> None:
        while self._waiting is not None:
            (snapshot, calls), self._waiting = self._waiting, None
            try:
                await self.write(snapshot, calls)
            except ServerError as error:
                log.error("run %s: no checkpoint of step %d: %s", self._meta.id, snapshot.step, error)

    def _save(self, snapshot: Snapshot, kept: list[KeptReply], name: str) -> None:
        """In a worker thread, as there may be many replies and the journal is a file, too."""
        calls = {client: CallsDone(done, []) for client, done in snapshot.done.items()}
        for each in kept:
            calls[each.client].replies.append(StoredReply(each.number, each.digest, to_json(each.reply)))
        state = RunState(
            meta=self._meta,
            spec=self._spec,
            step=snapshot.step,
            loss=snapshot.loss,
            accumulated_calls=snapshot.accumulated_calls,
            parameters=snapshot.parameters,
            optimizer=snapshot.optimizer,
            accumulated=snapshot.accumulated,
            calls=calls,
        )
        checkpoint_files.save_run(self._folder, name, state)
        try:
            self._journal.forget(snapshot.step)
        except OSError as error:  # it only grows
            log.error("run %s: its journal cannot be written: %s", self._meta.id, error)


def snapshot_of(state: RunState) -> Snapshot:
    """What a checkpoint holds for the device."""
    return Snapshot(
        state.parameters,
        state.optimizer,
        state.accumulated,
        state.accumulated_calls,
        state.step,
        state.loss,
        {client: calls.done for client, calls in state.calls.items()},
    )

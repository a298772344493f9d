"""Writes and reads a run's checkpoints, one at a time, and tracks which steps and calls are durable."""

import asyncio
import logging
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec

from seqloom_server.engine.core.worker_thread import in_worker_thread
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.engine.training.checkpoint_files import CallsDone, RunMeta, RunState, StoredReply
from seqloom_server.engine.training.numbered_calls import KeptReply, NumberedCalls
from seqloom_server.engine.training.replies import to_json
from seqloom_server.engine.training.run_weights import Snapshot
from seqloom_server.engine.training.step_journal import StepJournal
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.spec import ModelSpec

P = ParamSpec("P")

log = logging.getLogger(__name__)


class CheckpointWriter:
    """The checkpoints of one run. step, calls: of the last one, calls by client. names: of named ones, in order.

    done: by client, the calls in the checkpoint that the run was restored from. failed: called for each checkpoint that
    could not be written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        meta: RunMeta,
        spec: ModelSpec,
        journal: StepJournal,
        step: int,
        done: dict[str, int],
        failed: Callable[[], None],
    ) -> None:
        self.names: list[str] = []
        self.step = step
        self.calls = dict(done)
        self._folder = folder
        self._meta = meta
        self._spec = spec
        self._journal = journal
        self._failed = failed
        self._writing = asyncio.Lock()
        self._waiting: tuple[Snapshot, NumberedCalls] | None = None  # to be written after the current one
        self._writer: asyncio.Task[None] | None = None
        self._ended: ServerError | None = None

    async def write(
        self, snapshot: Snapshot, calls: NumberedCalls, name: str = "", reply: KeptReply | None = None
    ) -> None:
        """Writes a checkpoint, also under `name` if given. reply: to the call that asks for it. Raises ServerError."""
        async with self.turn():
            await self.write_next(snapshot, calls, name, reply)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Returns a context in which nothing else is written. Raises ServerError if the run has ended."""
        async with self._writing:
            if self._ended is not None:
                raise self._ended
            yield

    async def write_next(
        self, snapshot: Snapshot, calls: NumberedCalls, name: str = "", reply: KeptReply | None = None
    ) -> None:
        """Does as write(), within turn()."""
        if reply is None and any(number > snapshot.done.get(client, 0) for client, number in self.calls.items()):
            return  # a later checkpoint has been written already
        kept = calls.kept(snapshot.done)
        if reply is not None:
            kept.append(reply)
        await self._write(self._save, snapshot, kept, name)
        if name:
            self.names = sorted({*self.names, name})
        self.step, self.calls = snapshot.step, snapshot.done

    def write_soon(self, snapshot: Snapshot, calls: NumberedCalls) -> None:
        """Writes a checkpoint in the background, in place of one that still waits."""
        self._waiting = snapshot, calls
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write_waiting())

    async def written(self) -> None:
        """Waits until no checkpoint waits or is being written in the background."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def settle(self) -> None:
        """Drops a checkpoint that waits, and waits until none is being written in the background."""
        self._waiting = None
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def end(self, error: ServerError) -> None:
        """Ends all writing in the run's folder; later attempts raise the error."""
        self._ended = error
        await self.settle()
        async with self._writing:
            pass

    async def read(self, name: str) -> Snapshot:
        """Returns the snapshot in a named checkpoint. Raises CHECKPOINT_NOT_FOUND or CHECKPOINT_BROKEN."""
        try:
            state = await in_worker_thread("runs", checkpoint_files.load_named, self._folder, name)
        except ServerError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise ServerError(Reason.CHECKPOINT_NOT_FOUND, f"checkpoint {name!r} not found", field="name") from None
        if state.spec != self._spec or state.meta.optimizer != self._meta.optimizer:
            raise ServerError(Reason.CHECKPOINT_BROKEN, f"checkpoint {name!r} belongs to another network or optimizer")
        return snapshot_of(state)

    async def forget_steps(self) -> None:
        """Drops the journal's steps, since the run went back to an earlier step. Raises ServerError."""
        self._waiting = None
        await self._write(self._journal.clear)

    async def _write(self, function: Callable[P, None], *arguments: P.args, **keywords: P.kwargs) -> None:
        """Runs a part of writing a checkpoint in a worker thread. Raises ServerError, and then there is none."""
        try:
            await in_worker_thread("runs", function, *arguments, **keywords)
        except ServerError as error:
            self._failed()
            if error.reason is Reason.OVERLOADED:  # which would say that nothing of the call was done
                raise ServerError(Reason.STORAGE_FAILED, "the server has no memory for the checkpoint") from error
            raise

    async def _write_waiting(self) -> None:
        while self._waiting is not None:
            (snapshot, calls), self._waiting = self._waiting, None
            try:
                await self.write(snapshot, calls)
            except ServerError as error:
                log.error("run %s: no checkpoint written of step %d: %s", self._meta.id, snapshot.step, error)

    def _save(self, snapshot: Snapshot, kept: list[KeptReply], name: str) -> None:
        """Runs in a worker thread: there may be many replies, and the journal is a file, too."""
        self._journal.check_open()
        calls = {client: CallsDone(done, []) for client, done in snapshot.done.items()}
        for reply in kept:
            calls[reply.client].replies.append(StoredReply(reply.number, reply.digest, to_json(reply.reply)))
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
        except OSError as error:  # not fatal: the journal only stays longer
            log.error("run %s: its journal cannot be written: %s", self._meta.id, error)


def snapshot_of(state: RunState) -> Snapshot:
    """Returns the part of a checkpoint that goes to the device."""
    return Snapshot(
        state.parameters,
        state.optimizer,
        state.accumulated,
        state.accumulated_calls,
        state.step,
        state.loss,
        {client: calls.done for client, calls in state.calls.items()},
    )

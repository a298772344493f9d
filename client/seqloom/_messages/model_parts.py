"""Reads and writes a model folder, config.json and model.safetensors, as the messages that transfer it."""

import asyncio
import os
import pathlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from typing import Self, TypeVar

from seqloom._config import MESSAGE_BYTES
from seqloom.errors import InvalidArgument, checked_reply
from seqloom.v1 import model_service_pb2

T = TypeVar("T")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_PART_BYTES = MESSAGE_BYTES - 4096  # the rest is for the name and protobuf's own bytes
_MAX_CONFIG_BYTES = 64 << 10  # every server refuses more


def folder_path(folder: object) -> pathlib.Path:
    """Returns `folder` as a path. Raises InvalidArgument if it is none."""
    if not isinstance(folder, str | os.PathLike):
        raise InvalidArgument(f"folder: is {folder!r}: expected a path")
    return pathlib.Path(folder)


class FolderReader:
    """Reads a model folder as messages. Raises InvalidArgument if a file cannot be read."""

    def __init__(self, name: str, path: pathlib.Path) -> None:
        self._error: OSError | None = None
        try:
            with open(path / CONFIG, "rb") as file:
                config = file.read(_MAX_CONFIG_BYTES + 1)
            self._weights = open(path / WEIGHTS, "rb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _refused(error, path) from None
        self._first = model_service_pb2.ImportModelRequest(name=name, config=config)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.close()

    async def messages(self) -> AsyncIterator[model_service_pb2.ImportModelRequest]:
        """Yields the messages. The last has their number: without it the server does nothing."""
        yield self._first
        count = 2
        try:
            while part := await asyncio.to_thread(self._weights.read, _PART_BYTES):
                yield model_service_pb2.ImportModelRequest(weights=part)
                count += 1
            yield model_service_pb2.ImportModelRequest(parts=count)
        except OSError as error:
            self._error = error  # raised here it would only cancel the call
            raise

    async def response(self, call: Awaitable[T]) -> T:
        """Returns the reply of the call that sends these messages. Raises InvalidArgument if a file is unreadable."""
        try:
            return checked_reply(await call)
        except BaseException:
            if self._error is not None:
                raise _refused(self._error, self._path) from None
            raise


async def write(path: pathlib.Path, parts: AsyncIterable[model_service_pb2.ExportModelResponse]) -> None:
    """Writes the two files to a folder, which is created if it is missing. Each file is written whole or not at all.

    Raises InvalidArgument if they cannot be written.
    """
    new = {name: path / f".{name}.being-written" for name in (CONFIG, WEIGHTS)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            with open(new[CONFIG], "wb") as config, open(new[WEIGHTS], "wb") as weights:
                async for each in parts:
                    part = checked_reply(each)
                    config.write(part.config)
                    await asyncio.to_thread(weights.write, part.weights)
            for name, written in new.items():
                written.replace(path / name)
        finally:
            for written in new.values():
                written.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(error, path) from None


def _refused(error: OSError, path: pathlib.Path) -> InvalidArgument:
    return InvalidArgument(f"folder: {error.filename or path}: {error.strerror}")

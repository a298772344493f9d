"""A model's two files, config.json and model.safetensors, in the parts in which they travel."""

import asyncio
import os
import pathlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from typing import Self, TypeVar

from seqloom._config import MESSAGE_BYTES
from seqloom.errors import InvalidArgument, arrived
from seqloom.v1 import model_service_pb2

T = TypeVar("T")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_PART_BYTES = MESSAGE_BYTES - 4096  # room for the name and the framing
_MAX_CONFIG_BYTES = 64 << 10  # what every server refuses beyond


def path_of(folder: object) -> pathlib.Path:
    """Raises InvalidArgument where it is no path."""
    if not isinstance(folder, str | os.PathLike):
        raise InvalidArgument(f"folder: is {folder!r}: expected a path")
    return pathlib.Path(folder)


class Reader:
    """The messages that carry a model folder. Raises InvalidArgument where a file cannot be read."""

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

    async def parts(self) -> AsyncIterator[model_service_pb2.ImportModelRequest]:
        """Yields the messages; the last says how many they are, without which the server does nothing."""
        yield self._first
        count = 2
        try:
            while part := await asyncio.to_thread(self._weights.read, _PART_BYTES):
                yield model_service_pb2.ImportModelRequest(weights=part)
                count += 1
            yield model_service_pb2.ImportModelRequest(parts=count)
        except OSError as error:
            self._error = error  # here it would only cancel the call
            raise

    async def answer(self, call: Awaitable[T]) -> T:
        """Awaits the call that these messages are sent by."""
        try:
            return arrived(await call)
        except BaseException:
            if self._error is not None:
                raise _refused(self._error, self._path) from None
            raise


async def write(path: pathlib.Path, parts: AsyncIterable[model_service_pb2.ExportModelResponse]) -> None:
    """Writes the two files into a folder, which is made where it is absent; each is there whole or not at all.

    Raises InvalidArgument where they cannot be written.
    """
    new = {name: path / f".{name}.being-written" for name in (CONFIG, WEIGHTS)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            with open(new[CONFIG], "wb") as config, open(new[WEIGHTS], "wb") as weights:
                async for each in parts:
                    part = arrived(each)
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

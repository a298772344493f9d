"""A model's two files, config.json and model.safetensors, in the parts in which they travel."""

import asyncio
import os
import pathlib
from collections.abc import AsyncIterable, AsyncIterator

from seqloom.config import MESSAGE_BYTES
from seqloom.errors import InvalidArgument
from seqloom.v1 import model_service_pb2

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_PART_BYTES = MESSAGE_BYTES - 4096  # room for the name and the framing
_MAX_CONFIG_BYTES = 64 << 10  # what every server refuses beyond


async def read(name: str, folder: str | os.PathLike[str]) -> AsyncIterator[model_service_pb2.ImportModelRequest]:
    """Yields the messages that carry a model folder. Raises InvalidArgument where a file cannot be read."""
    path = pathlib.Path(folder)
    try:
        with open(path / CONFIG, "rb") as file:
            config = file.read(_MAX_CONFIG_BYTES + 1)
        with open(path / WEIGHTS, "rb") as file:
            part = await asyncio.to_thread(file.read, _PART_BYTES - len(config))
            yield model_service_pb2.ImportModelRequest(name=name, config=config, weights=part)
            while part := await asyncio.to_thread(file.read, _PART_BYTES):
                yield model_service_pb2.ImportModelRequest(weights=part)
    except OSError as error:
        raise InvalidArgument(f"folder: {error.filename}: {error.strerror}") from None


async def write(folder: str | os.PathLike[str], parts: AsyncIterable[model_service_pb2.ExportModelResponse]) -> None:
    """Writes the two files into `folder`, which is made where it is absent; each is there whole or not at all.

    Raises InvalidArgument where they cannot be written.
    """
    path = pathlib.Path(folder)
    new = {name: path / f".{name}.being-written" for name in (CONFIG, WEIGHTS)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            with open(new[CONFIG], "wb") as config, open(new[WEIGHTS], "wb") as weights:
                async for part in parts:
                    config.write(part.config)
                    await asyncio.to_thread(weights.write, part.weights)
            for name, written in new.items():
                written.replace(path / name)
        finally:
            for written in new.values():
                written.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidArgument(f"folder: {error.filename or path}: {error.strerror}") from None

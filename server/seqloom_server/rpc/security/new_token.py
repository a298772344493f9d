"""Adds a token to a file of tokens: makes its secret, and keeps only the secret's digest."""

import contextlib
import json
import os
import pathlib
import secrets
import tempfile
from collections.abc import Sequence

import filelock

from seqloom_server.rpc.security.tokens import digest_of, parse
from seqloom_server.rpc.security.watched_files import BrokenFile, read_file

_PREFIX = "seqloom_"  # by which a secret is known where it should not be
_SECRET_BYTES = 32
_LOCK_SECONDS = 10.0


def add_token(path: str, name: str, scopes: Sequence[str], **limits: float | None) -> str:
    """Adds a token to the file, which is made if it is missing; returns the secret, which is kept nowhere.

    limits: max_streams, steps_per_second and max_runs, None for none. The file is replaced as a whole, readable by its
    owner only; what else it says stays. Raises BrokenFile.
    """
    file = pathlib.Path(path).resolve()  # of a link, what it leads to is replaced
    try:
        with filelock.FileLock(f"{file}.lock", timeout=_LOCK_SECONDS, mode=0o600):
            return _add(file, name, scopes, limits)
    except filelock.Timeout:
        raise BrokenFile(f"{path}: another process changes it") from None
    except OSError as error:
        raise BrokenFile(f"{path}: cannot be written: {error.strerror}") from None


def _add(file: pathlib.Path, name: str, scopes: Sequence[str], limits: dict[str, float | None]) -> str:
    old = read_file(str(file)) if file.exists() else b""
    try:
        existing = parse(old, may_be_empty=True)
    except BrokenFile as error:
        raise BrokenFile(f"{file}: {error}") from None
    if existing.named(name) is not None:
        raise BrokenFile(f"{file}: has a token {name!r} already: remove it there first")
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    lines = [
        "[[token]]",
        f"name = {json.dumps(name)}",
        f"sha256 = {json.dumps(digest_of(secret).hex())}",
        f"scopes = {json.dumps(list(scopes))}",
        *(f"{key} = {value}" for key, value in limits.items() if value is not None),
    ]
    start = old if not old or old.endswith(b"\n") else old + b"\n"
    text = start + (b"\n" if start else b"") + "\n".join(lines).encode() + b"\n"
    try:
        parse(text)
    except BrokenFile as error:  # such as a name that is none; the last token is this one
        raise BrokenFile(str(error).partition(": ")[2] or str(error)) from None
    _replace(file, text)
    return secret


def _replace(file: pathlib.Path, text: bytes) -> None:
    """Writes a file in one step, so that a reader, or a crash, sees the old or the new one."""
    number, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # made with mode 0600
    try:
        with open(number, "wb") as new:
            new.write(text)
            new.flush()
            os.fsync(number)
        with contextlib.suppress(OSError):  # of the server's user, where root has called
            status = file.stat()
            os.chown(temporary, status.st_uid, status.st_gid)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

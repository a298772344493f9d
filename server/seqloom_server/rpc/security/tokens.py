"""The file of tokens: TOML tables [[token]], each with a name, the SHA-256 of its secret, its scopes and its limits.

The secrets themselves are nowhere on the server.
"""

import hashlib
import hmac
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from seqloom_server.engine.core.names import PATTERN, is_name
from seqloom_server.rpc.security.watched_files import BrokenFile

SCOPES = ("infer", "train", "admin")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEYS = ("name", "sha256", "scopes", "max_streams", "steps_per_second", "max_runs")


@dataclass(frozen=True, slots=True)
class Token:
    """A token. digest: the SHA-256 of its secret's UTF-8 bytes. The limits: None for none."""

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[str]
    max_streams: int | None = None
    steps_per_second: float | None = None
    max_runs: int | None = None


class Tokens:
    """The tokens of one file, found by their secrets."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._by_digest = {token.digest: token for token in tokens}
        self._by_name = {token.name: token for token in self._by_digest.values()}

    def find(self, secret: str) -> Token | None:
        """Returns the token of a secret. Time tells nothing of the secrets: what is looked up is a digest."""
        digest = digest_of(secret)
        token = self._by_digest.get(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None

    def named(self, name: str) -> Token | None:
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)


def digest_of(secret: str) -> bytes:
    """Returns the SHA-256 of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def parse(text: bytes, *, may_be_empty: bool = False) -> Tokens:
    """Returns the tokens in the text of a file. Raises BrokenFile, which names the table and the key.

    A file without any token is taken for one that is not written yet, or was cut, unless it may be empty.
    """
    try:
        content = tomllib.loads(text.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise BrokenFile(f"is not valid TOML: {error}") from None
    tables = content.pop("token", [])
    if content:
        raise BrokenFile(f"{next(iter(content))!r:.80} is unknown: expected tables [[token]] only")
    if not isinstance(tables, list):
        raise BrokenFile("[token]: expected [[token]]")
    if not tables and not may_be_empty:
        raise BrokenFile("has no [[token]]: expected at least one")
    tokens = [_token(table, f"token {number}") for number, table in enumerate(tables, 1)]
    seen: dict[tuple[str, str | bytes], int] = {}
    for number, token in enumerate(tokens, 1):
        for key, value in (("name", token.name), ("sha256", token.digest)):
            first = seen.setdefault((key, value), number)
            if first != number:
                raise BrokenFile(f"token {number}: {key}: is that of token {first}, too")
    return Tokens(tokens)


def _token(table: object, where: str) -> Token:
    if not isinstance(table, dict):
        raise BrokenFile(f"{where}: expected a table")
    for key in table:
        if key not in _KEYS:
            raise BrokenFile(f"{where}: {key!r:.80} is unknown: expected {', '.join(_KEYS)}")
    name, digest, scopes = table.get("name"), table.get("sha256"), table.get("scopes")
    if not isinstance(name, str) or not is_name(name):
        raise BrokenFile(f"{where}: name: is {name!r:.80}: expected a name like {PATTERN}")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest.lower()):
        raise BrokenFile(f"{where}: sha256: expected the 64 hexadecimal digits of a secret's SHA-256")
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise BrokenFile(f"{where}: scopes: is {scopes!r:.80}: expected a list of any of {', '.join(SCOPES)}")
    return Token(
        name,
        bytes.fromhex(digest),
        frozenset(scopes),
        max_streams=_count(table, "max_streams", where),
        steps_per_second=_rate(table, "steps_per_second", where),
        max_runs=_count(table, "max_runs", where),
    )


def _count(table: dict[str, object], key: str, where: str) -> int | None:
    value = table.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise BrokenFile(f"{where}: {key}: is {value!r:.80}: expected an integer of at least 0")
    return value


def _rate(table: dict[str, object], key: str, where: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BrokenFile(f"{where}: {key}: is {value!r:.80}: expected a finite number above 0")
    return float(value)

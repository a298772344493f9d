"""Lets a call in, by its token and by the scope that its method needs, or refuses it.

A call costs two digests and a few look-ups; messages of a call cost nothing. A good token is let in at once. The answer
to a wrong one waits the longer, the more of them came from its address.
"""

import asyncio
import collections
import time
from collections.abc import Awaitable, Iterable
from typing import NoReturn, TypeVar

from seqloom_server.engine.core.overload import overloaded
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.metrics import Metrics
from seqloom_server.rpc.security.open_calls import OpenCall, OpenCalls
from seqloom_server.rpc.security.scopes import ANY, scope_of
from seqloom_server.rpc.security.token_use import TokenUse
from seqloom_server.rpc.security.tokens import Tokens
from seqloom_server.rpc.security.wrong_tokens import WrongTokens, address_of

REASONS = ("missing", "wrong", "scope")  # for which calls are refused, in the metrics

_HEADER = "authorization"
_SCHEME = "bearer "
_MAX_WAITING = 16  # calls of one address

T = TypeVar("T")

Metadata = Iterable[tuple[str, str | bytes]]


class Gate:
    """Decides by the tokens that it was given last; see take()."""

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._uses: dict[str, TokenUse] = {}
        self._wrong = WrongTokens()
        self._waiting: collections.Counter[str] = collections.Counter()
        self._calls = OpenCalls()
        self.take(tokens)

    def take(self, tokens: Tokens) -> None:
        """Decides by these tokens from now on, and ends the open calls of those that are gone."""
        self._tokens = tokens
        for token in tokens:
            use = self._uses.get(token.name)
            if use is None:
                self._uses[token.name] = TokenUse(token)
            else:
                use.token = token
        self._calls.end(self._why_not)

    def knows(self, metadata: Metadata) -> bool:
        """Returns whether a call has a good token, before anything of it is read."""
        secret = _secret_in(metadata)
        return secret is not None and self._tokens.find(secret) is not None

    async def admit(self, metadata: Metadata, peer: str) -> TokenUse:
        """Returns the use of a call's token. peer: as gRPC names it. Raises ServerError as refuse() does."""
        secret = _secret_in(metadata)
        token = None if secret is None else self._tokens.find(secret)
        if token is None:
            await self.refuse(metadata, peer)
        return self._uses[token.name]

    async def refuse(self, metadata: Metadata, peer: str) -> NoReturn:
        """Refuses a call without a good token, of a wrong one after the pause of its address.

        Raises ServerError NO_TOKEN, WRONG_TOKEN, or OVERLOADED if too many calls of the address wait.
        """
        if _secret_in(metadata) is None:
            self._count("missing")
            raise ServerError(
                Reason.NO_TOKEN, "the token is missing: expected the metadata authorization: Bearer TOKEN"
            )
        address = address_of(peer)
        if self._wrong.wait(address, time.monotonic()):
            await self._turn(address)
        self._wrong.add(address, time.monotonic())
        self._count("wrong")
        raise ServerError(Reason.WRONG_TOKEN, "the token is not one of this server's")

    def check_scope(self, use: TokenUse, method: str) -> None:
        """Raises ServerError SCOPE_MISSING for a method that the token does not permit. method: "a.Service/Method"."""
        scope = scope_of(method)
        if scope != ANY and scope not in use.token.scopes:
            self._count("scope")
            raise ServerError(Reason.SCOPE_MISSING, f"the token {use.token.name!r} has no scope {scope!r}")

    async def watched(self, use: TokenUse, method: str, work: Awaitable[T]) -> T:
        """Awaits the work of a call that was admitted. Raises ServerError once its token is gone."""
        return await self._calls.run(use.token, scope_of(method), work)

    async def _turn(self, address: str) -> None:
        """Waits until a wrong token of this address may be answered: of many that wait, each delays the others."""
        if self._waiting[address] >= _MAX_WAITING:
            raise overloaded(
                "wrong tokens came from this address: others of them wait",
                self._wrong.wait(address, time.monotonic()),
                Overload.TOKEN,
            )
        self._waiting[address] += 1
        try:
            while pause := self._wrong.wait(address, time.monotonic()):  # noqa: ASYNC110 - a pause, not a poll
                await asyncio.sleep(pause)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def _why_not(self, call: OpenCall) -> ServerError | None:
        """Returns why a call may not go on, None if it may."""
        token = self._tokens.named(call.token.name)
        if token is None or token.digest != call.token.digest:
            return ServerError(Reason.TOKEN_REMOVED, f"the token {call.token.name!r} was removed")
        if call.scope != ANY and call.scope not in token.scopes:
            return ServerError(Reason.SCOPE_MISSING, f"the token {token.name!r} has lost the scope {call.scope!r}")
        return None

    def _count(self, reason: str) -> None:
        self._metrics.unauthorized_total.labels(reason=reason).inc()


def _secret_in(metadata: Metadata) -> str | None:
    """Returns the secret of "authorization: Bearer SECRET", None where there is none."""
    for key, value in metadata:
        if key == _HEADER and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    return None

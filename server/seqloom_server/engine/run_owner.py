"""Whom a training run belongs to: the token that made it. To others it does not exist."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunOwner:
    """Who asks for runs. name: of the token, "" where the server asks for none. max_runs: of the token, None for none.

    admin: whether the token has that scope.
    """

    name: str = ""
    admin: bool = False
    max_runs: int | None = None

    def may_use(self, owner: str) -> bool:
        """Whether it may use the runs of an owner.

        A server that asks for no tokens knows nobody apart: all may use all runs. Runs that were made without a token,
        and those of which it cannot be read, are an administrator's.
        """
        return not self.name or owner == self.name or (not owner and self.admin)


ANYONE = RunOwner()

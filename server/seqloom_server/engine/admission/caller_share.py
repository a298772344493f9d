"""The part of a bound that one caller may take: what nobody else uses, but for a tenth, which is left to others."""

_OF_WHAT_IS_FREE = 9  # times: nine tenths of a bound for the first caller, nine tenths of the rest for the next, ...


def admits(own: float, used: float, limit: float, added: float) -> bool:
    """Returns whether a caller that holds `own` of the `used` units of a bound may hold `added` more.

    Nobody holds more than nine times what is free before a unit is added. So one that comes alone gets nine tenths of
    the bound, unit by unit, and whoever comes next finds a tenth, of which it may take nine tenths, and so on. Of fewer
    than ten units it gets all. A caller that holds nothing is refused only where `added` is not free; so what comes in
    one large piece may take all that is left.
    """
    free = limit - used
    return added <= free and own + added <= _OF_WHAT_IS_FREE * free


def is_share_full(own: float, used: float, limit: float, added: float) -> bool:
    """Returns whether it is the caller's share that refuses what the bound itself would hold."""
    return used + added <= limit and not admits(own, used, limit, added)


class SharedBound:
    """A bound on units that callers hold for a while, such as sessions, and who holds how many.

    surely: so much is held before anybody is refused, whoever holds it.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.surely = (1 - 1 / (1 + _OF_WHAT_IS_FREE)) * limit
        self.used = 0.0
        self._callers: dict[str, float] = {}

    def held(self, caller: str) -> float:
        """Returns the units that a caller holds."""
        return self._callers.get(caller, 0.0)

    def admits(self, caller: str, added: float = 1) -> bool:
        """Returns whether a caller may hold more."""
        return self.used + added <= self.surely or admits(self.held(caller), self.used, self.limit, added)

    def count(self, caller: str, added: float = 1) -> None:
        """Adds units to what a caller holds, or takes them away."""
        callers = self._callers
        held = callers.get(caller, 0.0) + added
        if held:
            callers[caller] = held
        else:
            callers.pop(caller, None)
        self.used += added

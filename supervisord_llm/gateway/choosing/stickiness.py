"""Which member of a route a client or a session was with. Bounded, and forgotten after a while."""

from collections.abc import Hashable

from supervisord_llm.gateway.recent import Recent

FORGOTTEN_AFTER_S = 3600.0
"""By then the prefix cache of its engine has gone to others."""

MOST = 20_000


class Stickiness:
    """What was chosen last, by whom it was chosen for; the least recently used goes first."""

    def __init__(self, most: int = MOST, forgotten_after_s: float = FORGOTTEN_AFTER_S) -> None:
        self._forgotten_after_s = forgotten_after_s
        self._chosen: Recent[Hashable, tuple[str, float]] = Recent(most)

    def __len__(self) -> int:
        return len(self._chosen)

    def get(self, whose: Hashable, now: float) -> str | None:
        """What was chosen for it. `now` is loop time, seconds."""
        found = self._chosen.get(whose)
        if found is None:
            return None
        chosen, at = found
        if now - at > self._forgotten_after_s:
            del self._chosen[whose]
            return None
        return chosen

    def remember(self, whose: Hashable, chosen: str, now: float) -> None:
        self._chosen[whose] = (chosen, now)

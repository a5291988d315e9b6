"""What is known of somebody or something for a while: bounded, and forgotten with time."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from supervisord_llm.gateway.recent import Recent

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """The `most` keys that were set last, each for `keep_s` seconds from then."""

    def __init__(self, most: int, keep_s: float) -> None:
        self._keep_s = keep_s
        self._kept: Recent[K, tuple[V, float]] = Recent(most)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K, now: float) -> V | None:
        """`now` is loop time, seconds."""
        found = self._kept.get(key)
        if found is None:
            return None
        value, at = found
        if now - at > self._keep_s:
            del self._kept[key]
            return None
        return value

    def set(self, key: K, value: V, now: float) -> None:
        self._kept[key] = (value, now)

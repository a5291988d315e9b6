"""Token buckets: how many requests may come in how much time, from one client or one address."""

import math
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

from supervisord_llm.config.model import Rate
from supervisord_llm.core.explain import span
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.recent import Recent

MAX_ADDRESSES = 8192
"""How many are remembered; above it the one that was silent for longest is forgotten."""

SLACK = 0.01
"""Of a token: so far may a bucket be overdrawn, since sums of times are not exact."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: holds `size`, and gains one every `interval_s` until it is full.

    All of its state is the time at which it is full again, which is kept by whoever takes from it.
    """

    size: int
    interval_s: float

    def take(self, full_at: float, now: float) -> tuple[float, float]:
        """Take one: when the bucket is full from now on, and the seconds to wait: 0 if there was one."""
        most_s, slack_s = self.size * self.interval_s, SLACK * self.interval_s
        full_at = min(max(full_at, now), now + most_s + slack_s)
        wait_s = full_at + self.interval_s - now - most_s
        return (full_at, wait_s) if wait_s > slack_s else (full_at + self.interval_s, 0.0)

    def left(self, full_at: float, now: float) -> int:
        """How many could be taken at once."""
        missing = max(0.0, full_at - now) / self.interval_s
        return max(0, math.floor(self.size + SLACK - missing))


def bucket(rate: Rate | None, burst: int | None) -> Bucket | None:
    """The bucket of a rate; without a `burst` it holds what the rate counts."""
    return None if rate is None else Bucket(burst or rate.count, rate.per_s / rate.count)


class Addresses:
    """The buckets of client addresses. Who is forgotten begins with a full one, so nobody is harmed by it."""

    def __init__(self) -> None:
        self._full_at: Recent[str, float] = Recent(MAX_ADDRESSES)

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, peer: str, allowed: Bucket, now: float) -> None:
        """Count a request of an address. `now` is monotonic time, seconds.

        Raises:
            Refused: `rate_limit_exceeded`.
        """
        key = place(peer)
        self._full_at[key], wait_s = allowed.take(self._full_at.get(key, 0.0), now)
        if wait_s:
            raise Refused(
                "rate_limit_exceeded",
                f"cannot take more requests from this address: try again in {span(max(1.0, wait_s))}",
                retry_after_s=wait_s,
            )


@lru_cache(maxsize=1024)
def place(peer: str) -> str:
    """What counts as one address: an IPv4 address or the /64 of an IPv6 one, all of which is one host's.

    In the /64 of link-local addresses is a host of its own behind each of them.
    """
    try:
        address = IPv6Address(peer)
    except ValueError:
        return peer
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return peer if address.is_link_local else str(IPv6Network((int(address) >> 64 << 64, 64)))

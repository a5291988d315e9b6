"""Who tries keys is made to wait, longer each time. A right key is never kept waiting.

So nobody can lock out a neighbour behind the same router or proxy; that keys cannot be guessed is a matter of
their length, which `llm-supervisor keys new` sees to. This keeps the attempts few, and tells of them.
"""

import logging
from dataclasses import dataclass

from supervisord_llm.core.explain import span
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.limits.buckets import MAX_ADDRESSES, place
from supervisord_llm.gateway.recent import Recent

FREE_TRIES = 10
"""Wrong keys before the first wait: a program with an outdated key should read 401."""

LONGEST_S = 300.0
FORGET_S = 900.0
"""An address that sent no wrong key for so long begins anew."""

log = logging.getLogger("llm_supervisor.http")


@dataclass(slots=True)
class _Tries:
    """The wrong keys of one address. Times are monotonic, seconds."""

    last_at: float
    wrong: int = 0
    locked_until: float = 0.0


class Lockout:
    """The addresses that wrong keys came from, bounded in number."""

    def __init__(self) -> None:
        self._tries: Recent[str, _Tries] = Recent(MAX_ADDRESSES)

    def __len__(self) -> int:
        return len(self._tries)

    def wrong_key(self, peer: str, now: float) -> None:
        """A wrong key came from `peer`.

        Raises:
            Refused: `rate_limit_exceeded`, too many of them did.
        """
        key = place(peer)
        tries = self._tries.get(key)
        if tries is None or now - tries.last_at > FORGET_S:
            tries = _Tries(now)
        self._tries[key] = tries  # the newest of all
        tries.last_at = now
        if now < tries.locked_until:
            wait_s = tries.locked_until - now
            raise Refused(
                "rate_limit_exceeded",
                f"cannot try another key from this address for {span(max(1.0, wait_s))}: "
                "too many wrong ones came; correct the key",
                retry_after_s=wait_s,
            )
        tries.wrong += 1
        locks = tries.wrong - FREE_TRIES
        if locks >= 0:
            tries.locked_until = now + min(LONGEST_S, 2.0 ** min(locks, 20))
        if locks == 0:
            log.warning(
                "%s sent %d wrong API keys: more are answered 429 for a growing time; right keys pass",
                key,
                tries.wrong,
            )

"""What one client takes: requests, requests in flight, tokens of an hour and a day."""

import math
from operator import itemgetter

from supervisord_llm.config.model import Client
from supervisord_llm.core.explain import span
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.limits.buckets import bucket
from supervisord_llm.telemetry.usage import UsageStore


class Meter:
    """Counts for one client, over all of its keys and connections; a reload changes what it allows.

    As a context manager it counts a request in flight to an engine:

        with meter:    # raises Refused: `too_many_concurrent_requests`, or `rate_limit_exceeded` by tokens
            ...
    """

    __slots__ = ("_client", "_full_at", "_quotas", "_requests", "_usage", "in_flight")

    def __init__(self, client: Client, usage: UsageStore) -> None:
        self._usage = usage
        self._full_at = 0.0
        self.in_flight = 0
        self.allow(client)

    def allow(self, client: Client) -> None:
        """Take the client's limits as they are now."""
        self._client = client
        self._requests = bucket(client.rate, client.burst)
        hour, day = self._usage.windows(client.name)
        quotas = ((hour, client.tokens_per_hour), (day, client.tokens_per_day))
        self._quotas = tuple((window, limit) for window, limit in quotas if limit is not None)

    def take(self, now: float) -> None:
        """Count a request. `now` is monotonic time, seconds.

        Raises:
            Refused: `rate_limit_exceeded`.
        """
        if self._requests is None:
            return
        self._full_at, wait_s = self._requests.take(self._full_at, now)
        if wait_s:
            raise Refused(
                "rate_limit_exceeded",
                f"cannot take more requests with this key: it may send {self._client.rate}; "
                f"try again in {span(max(1.0, wait_s))}",
                retry_after_s=wait_s,
            )

    def __enter__(self) -> None:
        if self._quotas:
            self._check_tokens(self._usage.now())
        most = self._client.max_concurrent
        if most is not None and self.in_flight >= most:
            raise Refused(
                "too_many_concurrent_requests",
                f"cannot take another request with this key: {self.in_flight} are in flight and it may have "
                f"{most}; wait for one to end",
            )
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1

    def _check_tokens(self, now: float) -> None:
        """`now` is Unix time, seconds."""
        for window, limit in self._quotas:
            used = window.at(now).tokens
            if used >= limit:
                wait_s = window.ends_at - now
                raise Refused(
                    "rate_limit_exceeded",
                    f"cannot take more requests with this key: it has used {used} of the {limit} tokens "
                    f"of this {window.period}; try again in {span(max(1.0, wait_s))}",
                    retry_after_s=wait_s,
                )

    def spend(self, tokens: int) -> None:
        """Count the tokens of a request that has ended; one that began below the limit was served."""
        if self._quotas and tokens > 0:
            self._usage.add(self._client.name, tokens)

    def headers(self, now: float) -> dict[str, str]:
        """X-RateLimit-* as OpenAI has them, of what is limited. `now` is monotonic time, seconds."""
        found: dict[str, str] = {}
        if self._requests is not None:
            left = self._requests.left(self._full_at, now)
            found |= _headers("Requests", self._requests.size, left, max(0.0, self._full_at - now))
        if self._quotas:
            today = self._usage.now()
            # Of an hour and a day, what is felt first.
            left, limit, window = min(
                ((max(0, limit - window.at(today).tokens), limit, window) for window, limit in self._quotas),
                key=itemgetter(0),
            )
            found |= _headers("Tokens", limit, left, window.ends_at - today)
        return found


def _headers(what: str, limit: int, left: int, reset_s: float) -> dict[str, str]:
    return {
        f"X-RateLimit-Limit-{what}": str(limit),
        f"X-RateLimit-Remaining-{what}": str(left),
        f"X-RateLimit-Reset-{what}": duration(reset_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI writes it: "120ms", "8s", "6m0s", "1h0m0s"."""
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, left_s = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{left_s}s"
    return f"{minutes}m{left_s}s" if minutes else f"{left_s}s"

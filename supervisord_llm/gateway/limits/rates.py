"""How many requests each model elsewhere may be sent: as configured, and as its API asks for."""

import time
from collections.abc import Iterable, Mapping

from supervisord_llm.config.model import Model
from supervisord_llm.core.explain import span
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.limits.buckets import Bucket, bucket
from supervisord_llm.runtime.ports import Beginning

MAX_REST_S = 60.0
"""An API that wants to be left alone for longer is asked once a minute whether it still does."""


class Rates:
    """What was counted outlives a reload; what is allowed is that of the configuration in force."""

    def __init__(self) -> None:
        self._buckets: Mapping[str, Bucket] = {}
        self._full_at: dict[str, float] = {}
        self._rests_until: dict[str, float] = {}

    def configure(self, models: Iterable[Model]) -> None:
        """These models exist, with these rates; others are forgotten."""
        found = {model.name: bucket(model.rate, None) for model in models}
        self._buckets = {name: each for name, each in found.items() if each is not None}
        self._full_at = {name: at for name, at in self._full_at.items() if name in self._buckets}
        self._rests_until = {name: at for name, at in self._rests_until.items() if name in found}

    def began(self, model: str, beginning: Beginning) -> None:
        """Leave a model alone whose API has said for how long."""
        if beginning.status == 429 and beginning.retry_after_s is not None:
            self._rests_until[model] = time.monotonic() + min(MAX_REST_S, beginning.retry_after_s)

    def take(self, model: str) -> None:
        """Count a request that is to go to the model.

        Raises:
            Refused: `rate_limit_exceeded`.
        """
        now = time.monotonic()
        wait_s = self._rests_until.get(model, now) - now
        why = "its API has asked to be left alone"
        if wait_s <= 0:
            self._rests_until.pop(model, None)
            if (allowed := self._buckets.get(model)) is None:
                return
            self._full_at[model], wait_s = allowed.take(self._full_at.get(model, 0.0), now)
            why = "it has been sent as many as its `rate` allows"
        if wait_s > 0:
            raise Refused(
                "rate_limit_exceeded",
                f"cannot take more requests for {model} now: {why}; try again in {span(max(1.0, wait_s))}",
                retry_after_s=wait_s,
            )

"""Figures per model since the daemon started, for GET /stats: bounded memory, no history."""

import statistics
import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from supervisord_llm.telemetry.record import Outcome, RequestRecord

REMEMBERED_STARTS = 50


@dataclass(slots=True)
class _OfModel:
    requests: Counter[Outcome] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    spin_up_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STARTS))
    last_hit: float | None = None
    """Unix time."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Stats:
    """Fed by the Recorder."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._models: dict[str, _OfModel] = {}
        self._choices: dict[str, Counter[str]] = {}
        self._retries: dict[str, Counter[str]] = {}
        """Route -> model -> how often."""

    @property
    def uptime_s(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def configure(self, models: Collection[str]) -> None:
        """These models exist; others are forgotten."""
        self._models = {name: counts for name, counts in self._models.items() if name in models}

    def request(self, record: RequestRecord) -> None:
        """Count a finished request of a model."""
        if record.model is None:
            return
        counts = self._models.setdefault(record.model, _OfModel())
        counts.requests[record.outcome] += 1
        counts.last_hit = time.time()
        if record.usage is not None:
            counts.prompt_tokens += record.usage.prompt
            counts.completion_tokens += record.usage.completion

    def start(self, model: str, outcome: str, duration_s: float) -> None:
        """Count a start; only one that became ready says how long a start takes."""
        counts = self._models.setdefault(model, _OfModel())
        counts.starts[outcome] += 1
        if outcome == "ready":
            counts.spin_up_s.append(duration_s)

    def route_chosen(self, route: str, model: str) -> None:
        """Count a choice of a route."""
        self._choices.setdefault(route, Counter())[model] += 1

    def route_retried(self, route: str, model: str) -> None:
        """Count a choice that came to nothing."""
        self._retries.setdefault(route, Counter())[model] += 1

    def of_route(self, route: str) -> dict[str, Any]:
        """One route's part of GET /stats."""
        return {
            "choices": dict(self._choices.get(route, ())),
            "retries": dict(self._retries.get(route, ())),
        }

    def of(self, model: str) -> dict[str, Any]:
        """One model's part of GET /stats."""
        counts = self._models.get(model, _OfModel())
        times = counts.spin_up_s
        hit = counts.last_hit
        return {
            "requests": {outcome.value: counts.requests[outcome] for outcome in Outcome},
            "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
            "starts": dict(counts.starts),
            "spin_up_s": {
                "last": round(times[-1], 3) if times else None,
                "median": round(statistics.median(times), 3) if times else None,
            },
            "last_hit": None
            if hit is None
            else datetime.fromtimestamp(hit, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }

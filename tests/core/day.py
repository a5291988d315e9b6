"""A day of a busy household, drawn from a seed: models, GPUs, and who asks for what when."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from supervisord_llm.core.fleet import Gpu, ModelSpec
from tests.core.world import GIB, gpu

DAY_S = 24 * 3600.0
CARDS_GIB = (24, 24, 24, 24, 48, 48, 80, 80)
LOAD_GIB_PER_S = 0.45
"""Weights to a serving engine: 150 s for the largest. No start is below START_LEAST_S."""
START_LEAST_S = 20.0
HOST_RAM_BYTES = 256 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Someone with a key: how urgent, how much of all sessions, and how it asks."""

    name: str
    priority: int
    share: float
    requests: float
    """In a session, on average."""
    pause_s: float
    """Median time between the requests of a session."""


CLIENTS = (
    Client(name="webui", priority=10, share=0.5, requests=6, pause_s=35),
    Client(name="ide", priority=5, share=0.3, requests=8, pause_s=15),
    Client(name="agents", priority=0, share=0.2, requests=12, pause_s=3),
)
CRON_PERIODS_S = (600.0, 900.0, 1800.0, 1800.0, 3600.0, 3600.0)
"""Jobs that ask one model for a few answers, day and night, with the priority of agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request."""

    at: float
    model: str
    client: str
    priority: int
    took_s: float
    """From its admission to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """The same for every policy."""

    seed: int
    specs: tuple[ModelSpec, ...]
    gpus: tuple[Gpu, ...]
    calls: tuple[Call, ...]
    start_s: Mapping[str, float]
    wake_s: Mapping[str, float]

    def able_to_sleep(self) -> "Day":
        return replace(self, specs=tuple(replace(spec, sleep_level=1) for spec in self.specs))


def day(seed: int, *, requests: int = 10_000, models: int = 40, length_s: float = DAY_S) -> Day:
    """Models of 2-60 GiB asked for by Zipf's law, in sessions, more by day than by night."""
    rng = random.Random(seed)
    sizes_gib = [math.exp(rng.uniform(math.log(2), math.log(60))) for _ in range(models)]
    specs = tuple(_spec(f"m{index:02}", size, rng) for index, size in enumerate(sizes_gib))
    names = [spec.name for spec in specs]
    popular = [1 / rank for rank in range(1, models + 1)]
    calls: list[Call] = []
    for period_s in CRON_PERIODS_S:
        calls += _cron(rng, period_s, rng.choice(names), length_s)
    while len(calls) < requests:
        began = rng.uniform(0, length_s)
        if rng.random() < _activity(began / length_s):
            (client,) = rng.choices(CLIENTS, [client.share for client in CLIENTS])
            (model,) = rng.choices(names, popular)
            calls += _session(rng, client, model, began)
    calls = sorted(rng.sample(calls, requests), key=lambda call: call.at)
    return Day(
        seed=seed,
        specs=specs,
        gpus=tuple(gpu(index, size * 0.9 - 1, size) for index, size in enumerate(CARDS_GIB)),
        calls=tuple(calls),
        start_s={
            name: max(START_LEAST_S, size / LOAD_GIB_PER_S * rng.uniform(0.8, 1.1))
            for name, size in zip(names, sizes_gib, strict=True)
        },
        wake_s={name: 1 + size / 12 for name, size in zip(names, sizes_gib, strict=True)},
    )


def _spec(name: str, size_gib: float, rng: random.Random) -> ModelSpec:
    """Large ones take two cards, some because they must not fill one. Nothing stops by itself."""
    pair = size_gib > 30 and rng.random() < 0.5
    return ModelSpec(
        name=name,
        pinned=None,
        gpu_count=2 if pair else 1,
        grant=int(size_gib * GIB / (2 if pair else 1)),
        queue_timeout_s=3600,
        stop_after_s=None,
        stall_timeout_s=300,
    )


def _activity(share_of_day: float) -> float:
    """Least at four in the morning, a sixth of the most."""
    return 0.585 - 0.415 * math.cos(2 * math.pi * (share_of_day - 4 / 24))


def _took_s(rng: random.Random) -> float:
    return min(60.0, max(2.0, rng.lognormvariate(math.log(9), 0.8)))


def _session(rng: random.Random, client: Client, model: str, at: float) -> Iterator[Call]:
    while True:
        took_s = _took_s(rng)
        yield Call(at=at, model=model, client=client.name, priority=client.priority, took_s=took_s)
        if rng.random() < 1 / client.requests:
            return
        at += took_s + rng.lognormvariate(math.log(client.pause_s), 0.9)


def _cron(rng: random.Random, period_s: float, model: str, length_s: float) -> Iterator[Call]:
    at = rng.uniform(0, period_s)
    while at < length_s:
        for place in range(rng.randint(1, 4)):
            yield Call(at=at + place, model=model, client="cron", priority=0, took_s=_took_s(rng))
        at += period_s

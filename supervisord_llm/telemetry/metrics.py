"""Every metric, declared once.

Labels are names from the configuration and words from our tables only: no client can make new series.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from supervisord_llm import __version__
from supervisord_llm.core.fleet import Fleet, Gpu
from supervisord_llm.core.ledger import foreign_bytes, held_bytes
from supervisord_llm.core.state import State
from supervisord_llm.telemetry.record import Classified, RequestRecord

PREFIX = "llm_supervisor"
OUTCOMES = ("ready", "failed", "stopped")
SLEEP_OUTCOMES = ("asleep", "failed")
REASONS = ("rate_limit_exceeded", "too_many_concurrent_requests")
REASONS_WITHOUT_KEY = ("invalid_api_key", "rate_limit_exceeded")
FIRST_BYTE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
START_S = (1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600)
CLASSIFICATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)

NO_ROUTES: Mapping[str, tuple[str, ...]] = MappingProxyType({})

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # doubles the series, says nothing


class _OfFleet(Collector):
    """Gauges read off the snapshot at scrape time, so that they cannot drift from it."""

    def __init__(self, fleet: Callable[[], Fleet]) -> None:
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        state, flight, waiting, granted, used, *of_gpus = families
        fleet = self._fleet()
        for engine in fleet:
            for word in State:
                state.add_metric([engine.name, word.value], float(engine.state is word))
            flight.add_metric([engine.name], len(engine.leases))
            waiting.add_metric([engine.name], len(engine.waiting))
            for family, sizes in ((granted, engine.granted_bytes), (used, engine.used_bytes or ())):
                for index, size_bytes in zip(engine.gpus, sizes, strict=False):
                    family.add_metric([engine.name, str(index)], size_bytes)
        held = held_bytes(fleet, fleet.gpus)
        for gpu in fleet.gpus.values():
            for family, value in zip(of_gpus, _figures(fleet, gpu, held[gpu.index]), strict=True):
                if value is not None:  # what cannot be learnt has no sample, and is never 0
                    family.add_metric([str(gpu.index), gpu.uuid], value)
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        return tuple(
            GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=labels)
            for name, meaning, labels in (
                ("model_state", "1 for the state the model is in", ["model", "state"]),
                ("requests_in_flight", "Requests an engine works on", ["model"]),
                ("requests_waiting", "Requests that wait for an engine", ["model"]),
                ("engine_granted_bytes", "Memory of a GPU that an engine may hold", ["model", "gpu"]),
                ("engine_used_bytes", "Memory of a GPU that an engine was seen to hold", ["model", "gpu"]),
                ("gpu_budget_bytes", "Memory all grants may hold together", ["gpu", "uuid"]),
                ("gpu_granted_bytes", "Memory all grants hold together", ["gpu", "uuid"]),
                ("gpu_used_bytes", "Memory that everybody holds", ["gpu", "uuid"]),
                ("gpu_stranger_bytes", "Memory that others than our engines hold", ["gpu", "uuid"]),
                ("gpu_utilization_ratio", "Share of time in which the GPU computed", ["gpu", "uuid"]),
                ("gpu_temperature_celsius", "Temperature", ["gpu", "uuid"]),
                ("gpu_lost", "1 while the GPU cannot be used any more", ["gpu", "uuid"]),
            )
        )


def _figures(fleet: Fleet, gpu: Gpu, granted_bytes: int) -> tuple[float | None, ...]:
    """The gauges of one GPU in the order of their families; None is "cannot be learnt"."""
    sample = fleet.samples.get(gpu.index)
    if sample is None:
        return (gpu.budget_bytes, granted_bytes, None, None, None, None, None)
    stranger_bytes = None
    if sample.used_bytes is not None:
        stranger_bytes = foreign_bytes(sample, [engine for engine in fleet if gpu.index in engine.gpus])
    return (
        gpu.budget_bytes,
        granted_bytes,
        sample.used_bytes,
        stranger_bytes,
        sample.utilization,
        sample.temperature_c,
        float(bool(sample.lost)),
    )


class Metrics:
    """The daemon's own registry; nothing is read from the process-wide one."""

    def __init__(self, fleet: Callable[[], Fleet]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            f"{PREFIX}_requests",
            "Finished requests; code 499: the client left first; model empty: no engine was asked",
            ["model", "code"],
            registry=registry,
        )
        self._duration = Histogram(
            f"{PREFIX}_request_duration_seconds",
            "From a request's head to the end of its answer, the wait for a start included",
            ["model"],
            buckets=DURATION_S,
            registry=registry,
        )
        self._first_byte = Histogram(
            f"{PREFIX}_time_to_first_byte_seconds",
            "From a request's head to the first byte of the engine's answer, the wait for a start included",
            ["model"],
            buckets=FIRST_BYTE_S,
            registry=registry,
        )
        self._start_duration = Histogram(
            f"{PREFIX}_start_duration_seconds",
            "From launch to ready",
            ["model"],
            buckets=START_S,
            registry=registry,
        )
        self._starts = Counter(
            f"{PREFIX}_starts",
            "Launches by what came of them: ready, failed, stopped (broken off by someone)",
            ["model", "outcome"],
            registry=registry,
        )
        self._sleeps = Counter(
            f"{PREFIX}_sleeps",
            "Engines told to sleep by what came of it: asleep, failed",
            ["model", "outcome"],
            registry=registry,
        )
        self._wakes = Counter(
            f"{PREFIX}_wakes",
            "Engines told to wake by what came of it: ready, failed, stopped (broken off by someone)",
            ["model", "outcome"],
            registry=registry,
        )
        self._evictions = Counter(
            f"{PREFIX}_evictions",
            "Idle engines that were stopped or put to sleep before their time, to make room for others",
            ["model"],
            registry=registry,
        )
        self._tokens = Counter(
            f"{PREFIX}_tokens",
            "Tokens as the engine counted them, where the answer tells: prompt, completion",
            ["model", "kind"],
            registry=registry,
        )
        self._client_tokens = Counter(
            f"{PREFIX}_client_tokens",
            "Tokens by the client that asked for them, where the answer tells: prompt, completion",
            ["client", "kind"],
            registry=registry,
        )
        self._refusals = Counter(
            f"{PREFIX}_refusals",
            "Requests that ended with an error of the supervisor, by its code; client empty: before its key",
            ["client", "reason"],
            registry=registry,
        )
        self._route_choices = Counter(
            f"{PREFIX}_route_choices",
            "Choices of a route by the model that they led to, of repeated requests each",
            ["route", "model"],
            registry=registry,
        )
        self._route_retries = Counter(
            f"{PREFIX}_route_retries",
            "Requests that went on to another model because this one could not answer",
            ["route", "model"],
            registry=registry,
        )
        self._classifications = Counter(
            f"{PREFIX}_classifications",
            "Conversations that a route's classifier was to label, by what came of it",
            ["route", "outcome"],
            registry=registry,
        )
        self._classification_duration = Histogram(
            f"{PREFIX}_classification_duration_seconds",
            "What a request waited for a label that was not known yet",
            ["route"],
            buckets=CLASSIFICATION_S,
            registry=registry,
        )
        self._of_models = (
            *(self._requests, self._duration, self._first_byte, self._tokens),
            *(self._starts, self._start_duration, self._sleeps, self._wakes, self._evictions),
            *(self._route_choices, self._route_retries),
        )
        self._models: frozenset[str] = frozenset()
        Gauge(f"{PREFIX}_build_info", "Always 1", ["version"], registry=registry).labels(__version__).set(1)
        registry.register(_OfFleet(fleet))

    def configure(
        self,
        models: tuple[str, ...],
        clients: tuple[str, ...] = (),
        classified: tuple[str, ...] = (),
        routes: Mapping[str, tuple[str, ...]] = NO_ROUTES,
        peers: Collection[str] = (),
    ) -> None:
        """Create every series of these names at zero: a rate needs a zero to rise from. Forget other models.

        `classified`: the routes that have a classifier; `routes`: all of them, and where they may lead;
        `peers`: their models, of which there may be many: a series begins with the first that is counted.
        """
        before, self._models = self._models, frozenset((*models, *peers))
        if before - self._models:
            self._forget_others()
        for name, leads_to in routes.items():
            for model in leads_to:
                self._route_choices.labels(name, model)
                self._route_retries.labels(name, model)
        for route in classified:
            self._classification_duration.labels(route)
            for result in Classified:
                self._classifications.labels(route, result.value)
        for client in clients:
            for kind in ("prompt", "completion"):
                self._client_tokens.labels(client, kind)
        for client in ("", *clients):
            for reason in REASONS if client else REASONS_WITHOUT_KEY:
                self._refusals.labels(client, reason)
        for model in models:
            self._requests.labels(model, "200")
            for family in (self._duration, self._first_byte, self._start_duration):
                family.labels(model)
            for outcome in OUTCOMES:
                self._starts.labels(model, outcome)
                self._wakes.labels(model, outcome)
            for outcome in SLEEP_OUTCOMES:
                self._sleeps.labels(model, outcome)
            self._evictions.labels(model)
            for kind in ("prompt", "completion"):
                self._tokens.labels(model, kind)

    def _forget_others(self) -> None:
        known = {*self._models, ""}
        for family in self._of_models:
            samples = [sample for metric in family.collect() for sample in metric.samples]
            others = (sample.labels for sample in samples if sample.labels["model"] not in known)
            for labels in {tuple(labels[name] for name in labels if name != "le") for labels in others}:
                family.remove(*labels)

    def request(self, record: RequestRecord) -> None:
        """Count a finished request. `record.model` comes from the configuration, never from the client."""
        self._requests.labels(record.model or "", str(record.status)).inc()
        if record.refusal and not record.refusal.startswith("http_"):  # which are an engine's own errors
            self._refusals.labels(record.source, record.refusal).inc()
        if record.model is None:
            return
        self._duration.labels(record.model).observe(record.latency_s)
        if record.first_byte_s is not None:
            self._first_byte.labels(record.model).observe(record.first_byte_s)
        if record.usage is not None:
            self._tokens.labels(record.model, "prompt").inc(record.usage.prompt)
            self._tokens.labels(record.model, "completion").inc(record.usage.completion)
            self._client_tokens.labels(record.source, "prompt").inc(record.usage.prompt)
            self._client_tokens.labels(record.source, "completion").inc(record.usage.completion)

    def start(self, model: str, outcome: str, duration_s: float) -> None:
        """Count a launch that came to something."""
        self._starts.labels(model, outcome).inc()
        if outcome == "ready":
            self._start_duration.labels(model).observe(duration_s)

    def route_chosen(self, route: str, model: str) -> None:
        """Count a choice."""
        self._route_choices.labels(route, model).inc()

    def route_retried(self, route: str, model: str) -> None:
        """Count a choice that came to nothing."""
        self._route_retries.labels(route, model).inc()

    def classified(self, route: str, outcome: Classified, took_s: float) -> None:
        """Count a conversation that was to be labelled."""
        self._classifications.labels(route, outcome.value).inc()
        if outcome not in (Classified.CACHED, Classified.EMPTY, Classified.COLD):
            self._classification_duration.labels(route).observe(took_s)

    def sleep(self, model: str, outcome: str) -> None:
        """Count an engine that was told to sleep."""
        self._sleeps.labels(model, outcome).inc()

    def wake(self, model: str, outcome: str) -> None:
        """Count an engine that was told to wake."""
        self._wakes.labels(model, outcome).inc()

    def eviction(self, model: str) -> None:
        """Count an engine that made room."""
        self._evictions.labels(model).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

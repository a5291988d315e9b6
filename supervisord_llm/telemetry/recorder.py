"""Where news come in, finished requests and steps of the runtime, and are told to log and figures."""

from collections.abc import Callable, Collection, Mapping

from supervisord_llm.core import idle
from supervisord_llm.core.events import (
    ConfigChanged,
    Event,
    RestartAsked,
    ShutdownBegan,
    SleepAsked,
    SleepFailed,
    StopAsked,
)
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.state import State
from supervisord_llm.telemetry import accesslog
from supervisord_llm.telemetry.metrics import NO_ROUTES, Metrics
from supervisord_llm.telemetry.record import Classified, RequestRecord
from supervisord_llm.telemetry.stats import Stats


class Recorder:
    """One per daemon. `fleet` returns the current snapshot."""

    def __init__(self, fleet: Callable[[], Fleet]) -> None:
        self.metrics = Metrics(fleet)
        self.stats = Stats()
        self._seen: dict[str, Engine] = {}

    def configure(
        self,
        models: tuple[str, ...],
        clients: tuple[str, ...] = (),
        classified: tuple[str, ...] = (),
        routes: Mapping[str, tuple[str, ...]] = NO_ROUTES,
        peers: Collection[str] = (),
    ) -> None:
        """All of these exist, and their figures begin at zero; see Metrics.configure."""
        self.stats.configure({*models, *peers})
        self.metrics.configure(models, clients, classified, routes, peers)

    def request(self, record: RequestRecord) -> None:
        """A request has ended."""
        self.stats.request(record)
        self.metrics.request(record)
        accesslog.write(record)

    def route_chosen(self, route: str, model: str) -> None:
        """A route has chosen for a request."""
        self.stats.route_chosen(route, model)
        self.metrics.route_chosen(route, model)

    def route_retried(self, route: str, model: str) -> None:
        """A model could not serve a request of a route, and another one was asked."""
        self.stats.route_retried(route, model)
        self.metrics.route_retried(route, model)

    def classified(self, route: str, outcome: Classified, took_s: float) -> None:
        """A route's classifier was to label a conversation."""
        self.metrics.classified(route, outcome, took_s)

    def observe(self, event: Event, fleet: Fleet) -> None:
        """A step was made. What became of starts and sleepers is read off the snapshots before and after."""
        for engine in fleet:
            was = self._seen.get(engine.name)
            if was is engine:
                continue
            self._seen[engine.name] = engine
            if was is not None:
                self._changed(was, engine, event)
        if len(self._seen) > len(fleet.engines):
            self._seen = dict(fleet.engines)

    def _changed(self, was: Engine, engine: Engine, event: Event) -> None:
        name, duration_s = engine.name, engine.since - was.since
        match was.state:
            case State.STARTING if engine.state is not State.STARTING:
                self.stats.start(name, _outcome(engine), duration_s)
                self.metrics.start(name, _outcome(engine), duration_s)
            case State.WAKING if engine.state is not State.WAKING:
                self.metrics.wake(name, _outcome(engine))
            case State.SLEEPING if was.asleep_at is None and engine.asleep_at is not None:
                self.metrics.sleep(name, "asleep")
            case State.SLEEPING if was.asleep_at is None and engine.state is not State.SLEEPING:
                self.metrics.sleep(name, "failed")
        if made_room(was, engine, event):
            self.metrics.eviction(name)


def _outcome(engine: Engine) -> str:
    """Of a start or wake that is over: one that someone broke off did not fail."""
    if engine.state is State.READY:
        return "ready"
    return "stopped" if engine.state is State.STOPPING and not engine.kill_reason else "failed"


def made_room(was: Engine, engine: Engine, event: Event) -> bool:
    """Whether an engine left its GPUs, or fell asleep, for another: idle, unasked and before its time."""
    match was.state, engine.state:
        case State.READY, State.SLEEPING | State.DRAINING | State.STOPPING:
            pass
        case State.SLEEPING, State.STOPPING if not engine.is_wanted:
            pass
        case _:
            return False
    match event:
        case ConfigChanged() | ShutdownBegan():
            return False
        case StopAsked(model=model) | RestartAsked(model=model) | SleepAsked(model=model) if (
            model == was.name
        ):
            return False
        case SleepFailed(model=model) if model == was.name:
            return False
    went_wrong = bool(engine.kill_reason) or engine.sleepless != was.sleepless
    due = (idle.is_due(deadline(was), engine.since) for deadline in (idle.stop_deadline, idle.sleep_deadline))
    return not engine.leases and not went_wrong and not any(due)

"""Where news come in, finished requests and steps of the runtime, and are told to log and figures."""

from collections.abc import Callable

from supervisord_llm.core.events import Event
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.state import State
from supervisord_llm.telemetry import accesslog
from supervisord_llm.telemetry.metrics import Metrics
from supervisord_llm.telemetry.record import RequestRecord
from supervisord_llm.telemetry.stats import Stats


class Recorder:
    """One per daemon. `fleet` returns the current snapshot."""

    def __init__(self, fleet: Callable[[], Fleet]) -> None:
        self.metrics = Metrics(fleet)
        self.stats = Stats()
        self._seen: dict[str, Engine] = {}

    def configure(self, models: tuple[str, ...]) -> None:
        """These models exist; their figures begin at zero."""
        self.metrics.configure(models)

    def request(self, record: RequestRecord) -> None:
        """A request has ended."""
        self.stats.request(record)
        self.metrics.request(record)
        accesslog.write(record)

    def observe(self, event: Event, fleet: Fleet) -> None:
        """A step was made. Starts are timed by the snapshots: from STARTING to what came of it."""
        del event
        for engine in fleet:
            was = self._seen.get(engine.name)
            if was is engine:
                continue
            self._seen[engine.name] = engine
            if was is not None and was.state is State.STARTING and engine.state is not State.STARTING:
                self._start_ended(engine, engine.since - was.since)

    def _start_ended(self, engine: Engine, duration_s: float) -> None:
        is_ready = engine.state is State.READY
        outcome = "ready" if is_ready else "stopped" if _was_asked(engine) else "failed"
        self.stats.start(engine.name, outcome, duration_s)
        self.metrics.start(engine.name, outcome, duration_s)


def _was_asked(engine: Engine) -> bool:
    """A start that someone broke off, rather than one that went wrong."""
    return engine.state is State.STOPPING and not engine.kill_reason

"""One step under way: the next fleet so far, and the effects so far.

These are the verbs. Each keeps fact and effect together: who is admitted holds a lease, who is refused no
longer waits, what is told to stop is stopping. When to use them is decided in scheduler.py.
"""

from dataclasses import replace
from types import MappingProxyType

from supervisord_llm.core import explain, queue
from supervisord_llm.core.effects import (
    Admit,
    CancelPrepare,
    Effect,
    Notify,
    Prepare,
    Reject,
    StartEngine,
    StopEngine,
)
from supervisord_llm.core.events import RequestArrived
from supervisord_llm.core.fleet import Engine, Fleet, Waiting
from supervisord_llm.core.ledger import grant_bytes
from supervisord_llm.core.state import State

SOON_S = 5.0
"""Retry-After where nobody can know better."""


class Turn:
    """Lives no longer than the step. `state` is the fleet without its engines, which are in `engines`."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        self.now = now
        self.state = fleet
        self.engines = dict(fleet.engines)
        self.effects: list[Effect] = []
        self.touched: set[str] = set()

    @property
    def fleet(self) -> Fleet:
        return replace(self.state, engines=MappingProxyType(self.engines))

    def put(self, engine: Engine) -> Engine:
        """Make `engine` the one of its model."""
        self.engines[engine.name] = engine
        self.touched.add(engine.name)
        return engine

    def notify(self, model: str, text: str, *, is_bad: bool = False) -> None:
        self.effects.append(Notify(model=model, text=text, is_bad=is_bad))

    # --- requests

    def admit(self, engine: Engine, one: RequestArrived | Waiting) -> Engine:
        """Give `one` a lease; it waits no more."""
        self.effects.append(Admit(request=one.request, model=engine.name))
        waiting = tuple(other for other in engine.waiting if other.request != one.request)
        leases = engine.leases | {one.request}
        return self.put(replace(engine, waiting=waiting, leases=leases, last_used=self.now))

    def admit_waiting(self, engine: Engine) -> Engine:
        """Admit from the head of the queue while there are slots."""
        while engine.waiting and queue.has_slot(engine):
            engine = self.admit(engine, engine.waiting[0])
        return engine

    def refuse(
        self,
        one: RequestArrived | Waiting,
        model: str,
        code: str,
        message: str,
        retry_after_s: float | None = None,
    ) -> None:
        """Turn `one` away; `code` is of the HTTP error table."""
        self.effects.append(
            Reject(request=one.request, model=model, code=code, message=message, retry_after_s=retry_after_s)
        )

    def reject(
        self,
        engine: Engine,
        refused: tuple[Waiting, ...],
        code: str,
        message: str,
        retry_after_s: float | None = SOON_S,
    ) -> Engine:
        """Turn some of those who wait away."""
        for one in refused:
            self.refuse(one, engine.name, code, message, retry_after_s)
        gone = {one.request for one in refused}
        return self.put(
            replace(engine, waiting=tuple(one for one in engine.waiting if one.request not in gone))
        )

    def reject_all(
        self, engine: Engine, code: str, message: str, retry_after_s: float | None = SOON_S
    ) -> Engine:
        return self.reject(engine, engine.waiting, code, message, retry_after_s)

    # --- engines

    def prepare(self, engine: Engine) -> None:
        """Begin a new life."""
        self.notify(engine.name, explain.preparing(engine))
        engine = self.put(engine.to(State.PREPARING, self.now, launch=engine.launch + 1))
        self.effects.append(Prepare(model=engine.name, launch=engine.launch))

    def cancel_prepare(self, engine: Engine) -> None:
        self.effects.append(CancelPrepare(model=engine.name, launch=engine.launch))

    def start(self, engine: Engine, gpus: tuple[int, ...]) -> None:
        """Launch on `gpus`, which it holds from now on."""
        granted = tuple(grant_bytes(engine.spec, self.state.gpus[index]) for index in gpus)
        engine = self.put(engine.to(State.STARTING, self.now, gpus=gpus, granted_bytes=granted))
        self.notify(engine.name, explain.starting(engine))
        self.effects.append(StartEngine(model=engine.name, launch=engine.launch, gpus=gpus))

    def stop(self, engine: Engine, *, kill: bool = False) -> None:
        """End its processes; it holds its GPUs until they are reaped."""
        self.put(engine.to(State.STOPPING, self.now))
        self.effects.append(StopEngine(model=engine.name, launch=engine.launch, kill=kill))

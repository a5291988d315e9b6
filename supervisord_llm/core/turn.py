"""One step under way: the next fleet so far, and the effects so far.

These are the verbs. Each keeps fact and effect together: who is admitted holds a lease, who is refused no
longer waits, what is told to stop is stopping. When to use them is decided in scheduler.py.
"""

from types import MappingProxyType
from typing import Any

from supervisord_llm.core import explain, explain_memory, queue
from supervisord_llm.core.effects import (
    Admit,
    CancelPrepare,
    Effect,
    Notify,
    Prepare,
    Reject,
    Remember,
    SampleGpus,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeEngine,
)
from supervisord_llm.core.events import RequestArrived
from supervisord_llm.core.eviction import VISIT_S, visits
from supervisord_llm.core.fleet import Engine, Fleet, Learnt, Waiting
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import grant_bytes, kv_bytes, memory_fraction, unexplained_bytes
from supervisord_llm.core.placement import Reach, reach
from supervisord_llm.core.room import Room, rooms
from supervisord_llm.core.state import HAS_PROCESS, State

SOON_S = 5.0
"""Retry-After where nobody can know better."""

LATER_S = 60.0
"""Retry-After where it takes other GPUs, or others' memory."""

LONG_S = 3600.0
"""Retry-After where only a person can change anything."""


class Turn:
    """Lives no longer than the step. `state` is the fleet without its engines, which are in `engines`."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        self.now = now
        self.state = fleet
        engines = fleet.engines  # its own copy is made at once, where dict() goes through it key by key
        self.engines = engines.copy() if isinstance(engines, MappingProxyType) else dict(engines)
        self.effects: list[Effect] = []
        self.touched: set[str] = set()
        self.wake_times: list[float] = []
        """When there is something to do for the fleet as a whole."""
        self.room_changed = False
        """Something happened that those who wait for room should look at."""
        self._rooms: dict[int, Room] | None = None
        self._stale_rooms: set[int] = set()
        known = fleet.active
        self._known = known[1] if known is not None and known[0] is engines else None
        """Who did anything when the step began, in the config's order."""
        self._active: dict[str, None] | None = None
        """Who does now: those, and who was touched since."""
        self._holders: list[Engine] | None = None
        self._left: dict[int, tuple[Room, str]] = {}
        self._reach: tuple[dict[int, Room], frozenset[int], Reach] | None = None

    @property
    def fleet(self) -> Fleet:
        engines, known = MappingProxyType(self.engines), self._known
        active = None if known is None else (engines, self._with_touched(known))
        return replace(self.state, engines=engines, active=active)

    def put(self, engine: Engine) -> Engine:
        """Make `engine` the one of its model."""
        name = engine.spec.name
        before = self.engines[name]
        self.touched.add(name)
        if engine is before:
            return engine
        if engine.state in HAS_PROCESS or before.state in HAS_PROCESS:
            self._stale_rooms.update(before.gpus, engine.gpus)
            self._holders = None
        if _concerns_others(before, engine):
            self.room_changed = True
        self.engines[name] = engine
        if self._active is not None:
            self._active[name] = None
        return engine

    def forget(self, engine: Engine) -> None:
        """Have no engine of that name any more."""
        del self.engines[engine.name]
        self._known = self._active = None

    def put_all(self, engines: dict[str, Engine]) -> None:
        """Make `engines` all that there are."""
        self.engines = engines
        self._known = self._active = self._holders = self._rooms = None

    def notify(self, model: str, text: str, *, is_bad: bool = False) -> None:
        self.effects.append(Notify(model=model, text=text, is_bad=is_bad))

    # --- requests

    def admit(self, engine: Engine, one: RequestArrived | Waiting) -> Engine:
        """Give `one` a lease; it waits no more."""
        self.effects.append(Admit(request=one.request, model=engine.name))
        changes: dict[str, Any] = {"leases": engine.leases | {one.request}, "last_used": self.now}
        if isinstance(one, Waiting):
            changes["waiting"] = tuple(other for other in engine.waiting if other is not one)
        if one.priority != engine.last_priority:
            changes["last_priority"] = one.priority
        if not engine.leases:
            changes["tokens_at"] = self.now
        if self.now >= engine.visited_at + VISIT_S:
            changes |= {"visits": visits(engine, self.now) + 1.0, "visited_at": self.now}
        return self.put(replace(engine, **changes))

    def admit_waiting(self, engine: Engine) -> Engine:
        """Admit from the head of the queue while there are slots."""
        while engine.waiting and queue.has_slot(engine) and not engine.yields_to:
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
        engine = self.put(engine.to(State.PREPARING, self.now, launch=engine.launch + 1, returns=False))
        self.effects.append(Prepare(model=engine.name, launch=engine.launch, signature=engine.spec.signature))

    def cancel_prepare(self, engine: Engine) -> None:
        self.effects.append(CancelPrepare(model=engine.name, launch=engine.launch))

    def start(self, engine: Engine, gpus: tuple[int, ...]) -> None:
        """Launch on `gpus`, which it holds from now on."""
        cards = [self.state.gpus[index] for index in gpus]
        granted = tuple(grant_bytes(engine, gpu) for gpu in cards)
        ordered_kv = kv_bytes(engine, granted) if gpus else None
        engine = self.put(
            engine.to(
                State.STARTING,
                self.now,
                gpus=gpus,
                granted_bytes=granted,
                awake_bytes=granted,
                before_bytes=self.used_on(gpus),
                kv_bytes=ordered_kv,
                launched_as=engine.spec.signature,
                is_looked_at=False,
                is_invisible=False,
                tokens=None,
                counted_at=0.0,
            )
        )
        self.notify(engine.name, explain.starting(engine))
        self.effects.append(
            StartEngine(
                model=engine.name,
                launch=engine.launch,
                gpus=gpus,
                memory_fraction=memory_fraction(granted, cards),
                kv_bytes=ordered_kv,
                adjusted=dict(engine.learnt.adjusted),
                granted_bytes=granted,
                signature=engine.spec.signature,
            )
        )

    def stop(self, engine: Engine, *, kill: bool = False, dump: bool = False) -> None:
        """End its processes; it holds its GPUs until they are reaped."""
        self.put(engine.to(State.STOPPING, self.now))
        self.effects.append(StopEngine(model=engine.name, launch=engine.launch, kill=kill, dump=dump))

    def sleep(self, engine: Engine) -> None:
        """Put it to sleep; it holds its grant until its memory is seen to be free."""
        before = (
            self.used_on(engine.gpus)
            if engine.is_looked_at and not engine.is_invisible
            else (None,) * len(engine.gpus)  # what comes free could not be told from what was never seen
        )
        self.put(engine.to(State.SLEEPING, self.now, before_bytes=before))
        self.effects.append(
            SleepEngine(model=engine.name, launch=engine.launch, level=engine.spec.sleep_level)
        )

    def wake(self, engine: Engine) -> None:
        """Wake it; it holds its grant again from now on."""
        self.notify(engine.name, explain_memory.wakes(engine))
        awake = engine.to(State.WAKING, self.now, granted_bytes=engine.awake_bytes, used_bytes=None)
        self.put(replace(awake, is_looked_at=False))
        self.effects.append(
            WakeEngine(model=engine.name, launch=engine.launch, level=engine.spec.sleep_level)
        )

    def learn(self, engine: Engine, learnt: Learnt) -> Engine:
        """Keep what a launch taught, if it is still true of the configuration."""
        if learnt == engine.learnt or engine.launched_as != engine.spec.signature:
            return engine
        self.effects.append(Remember(model=engine.name, signature=engine.spec.signature, learnt=learnt))
        return self.put(replace(engine, learnt=learnt))

    # --- GPUs

    def used_on(self, gpus: tuple[int, ...]) -> tuple[int | None, ...]:
        """What everybody uses of `gpus`, by the last look."""
        samples = self.state.samples
        return tuple(samples[index].used_bytes if index in samples else None for index in gpus)

    def freed(self, engine: Engine) -> None:
        """Memory of its GPUs is given up, and `engine` is still seen to hold it.

        Who comes next waits for a look that is newer. What its neighbours hold cannot be told any more by a
        difference from before.
        """
        rooms = self.rooms()
        gpus = [index for index in engine.gpus if index in rooms]
        if not gpus:
            return
        before = {
            index: rooms[index].gpu.total_bytes  # it cannot be told whether it comes back
            if used is None or engine.is_invisible
            else unexplained_bytes(self.state.samples[index], rooms[index].holders)
            for index, used in zip(gpus, self.used_on(tuple(gpus)), strict=True)
            if rooms[index].is_settled
        }
        self.state = replace(
            self.state,
            freed_at=MappingProxyType({**self.state.freed_at, **dict.fromkeys(gpus, self.now)}),
            unexplained_bytes=MappingProxyType({**self.state.unexplained_bytes, **before}),
        )
        self._stale_rooms.update(gpus)
        for other in {holder.name: holder for index in gpus for holder in rooms[index].holders}.values():
            if other.name != engine.name and any(other.before_bytes):
                self.put(replace(other, before_bytes=(None,) * len(other.gpus)))
        if any(index in self.state.samples for index in gpus):
            self.sample_soon()

    def rooms(self) -> dict[int, Room]:
        """Every GPU as it stands, derived again after each change."""
        if self._rooms is None:
            self._rooms = rooms(self.state, self.holders(), self.now)
        elif self._stale_rooms:
            self._rooms = self._rooms | rooms(self.state, self.holders(), self.now, self._stale_rooms)
        self._stale_rooms.clear()
        return self._rooms

    def reach(self, claimed: frozenset[int]) -> Reach:
        """What is to be had while the `claimed` GPUs are spoken for."""
        rooms = self.rooms()
        if self._reach is None or self._reach[0] is not rooms or self._reach[1] is not claimed:
            self._reach = rooms, claimed, reach(rooms, claimed)
        return self._reach[2]

    def left_on(self, room: Room) -> str:
        """What is free of a GPU, and who has the rest, in words: the same for all who wait for it."""
        if room.gpu.index not in self._left or self._left[room.gpu.index][0] is not room:
            self._left[room.gpu.index] = room, explain_memory.left(room)
        return self._left[room.gpu.index][1]

    def sample_soon(self) -> None:
        if SampleGpus() not in self.effects:
            self.effects.append(SampleGpus())

    def holders(self) -> list[Engine]:
        """Engines with processes."""
        if self._holders is None:
            self._holders = [engine for engine in self.active() if engine.state in HAS_PROCESS]
        return self._holders

    def active(self) -> list[Engine]:
        """All but most of those that are stopped: a thousand are configured, and a few dozen do anything."""
        if self._active is None:
            names = self.engines if self._known is None else self._with_touched(self._known)
            self._known = {
                name: None
                for name in names
                if (engine := self.engines[name]).state is not State.STOPPED
                or engine.waiting
                or engine.wanted
            }
            self._active = self._known.copy()
        return [self.engines[name] for name in self._active if name in self.engines]

    def _with_touched(self, names: dict[str, None]) -> dict[str, None]:
        """Names of engines, and of those touched in this step, in the config's order."""
        if self.touched <= names.keys():
            return names
        either = names.keys() | self.touched
        return {name: None for name in self.engines if name in either}


def _concerns_others(before: Engine, engine: Engine) -> bool:
    """Whether the change may give room, or let somebody wait for it. That it is used more does neither."""
    if engine.state is not before.state:
        return not {before.state, engine.state}.isdisjoint(HAS_PROCESS | {State.QUEUED})
    return (
        (engine.is_wanted is not before.is_wanted and engine.state in (State.QUEUED, State.SLEEPING))
        or (engine.is_idle and not before.is_idle)
        or (not engine.leases and bool(before.leases))  # one that yields may be waited for itself
        or engine.granted_bytes != before.granted_bytes
        or engine.used_bytes != before.used_bytes
        or engine.gave_back is not before.gave_back
        or engine.estimate is not before.estimate
    )

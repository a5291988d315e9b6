"""Decisions over the whole fleet: who gets GPUs, who gives way, and what starts by itself."""

from typing import assert_never

from supervisord_llm.core import eviction, explain, explain_memory, placement, queue
from supervisord_llm.core.eviction import can_sleep, victims
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import granted_on
from supervisord_llm.core.moves import Moves
from supervisord_llm.core.placement import Choice, Evict, Place, Wait
from supervisord_llm.core.room import LOOK_AGAIN_S, SETTLE_S, is_moving
from supervisord_llm.core.state import SETTLED, State

TOLD_IN_FULL = 8
"""So many of those who wait are told who holds what; with every lease that changes, for all of them."""

RETURN_AFTER_S = 60.0
"""For so long nobody may have used an engine before the default model comes back."""


class Allocation(Moves):
    """Looks at all engines at once."""

    def place_waiting(self) -> None:
        """Give GPUs to those who are prepared, and to sleepers that are wanted, in the order of their turns.

        One that nobody waits for any more takes room that is there, for whoever left may come again; it does
        not make others give way, nor wait.
        """
        if self.state.is_overfull:
            self.uphold_budgets()
        candidates = [engine for engine in self.active() if wants_room(engine)]
        yields: dict[str, str] = {}
        claimed: frozenset[int] = frozenset()
        claimer = ""
        ordered = sorted(candidates, key=lambda each: queue.turn_order(each, self.now))
        for place, candidate in enumerate(ordered):
            engine = self.engines[candidate.name]
            if engine is not candidate and not wants_room(engine):  # it gave way to one before it
                continue
            if self.is_out_of_reach(engine, claimed, in_full=place < TOLD_IN_FULL):
                continue
            if engine.state is State.QUEUED and self.give_up_if_impossible(engine):
                continue
            if claimed and engine.spec.pinned != () and claimed >= self.state.gpus.keys():
                choice: Choice = Wait((), explain_memory.waits_behind(claimer))  # as it would come out
            else:
                choice = placement.choose(engine, self.rooms(), claimed, self.now)
            if not engine.is_wanted and not isinstance(choice, Place):
                self.put(engine.to(State.STOPPED, self.now))
                continue
            match choice:
                case Place(gpus):
                    if engine.state is State.SLEEPING:
                        self.wake(engine)
                    else:
                        self.start(engine, gpus)
                case Evict(gpus, models, may_sleep):
                    claimed |= frozenset(gpus)
                    self.make_room(engine, models, may_sleep=may_sleep)
                case Wait():
                    claimed |= self.wait_for_room(engine, choice, claimed, yields)
                case _:
                    assert_never(choice)
            if claimed and not claimer:
                claimer = engine.name
        self.settle_yields(yields)
        if candidates:
            self.watch_rooms()

    def uphold_budgets(self) -> None:
        """A budget was lowered below what is held: idle engines go, asleep if that is enough."""
        is_overfull = False
        for index in tuple(self.state.gpus):
            room = self.rooms()[index]  # as the one before it left it
            held = sum(granted_on(engine, index) for engine in room.holders)
            missing = held - room.gpu.budget_bytes
            if missing <= 0:
                continue
            is_overfull = True
            going = sum(granted_on(engine, index) for engine in room.holders if is_moving(engine))
            found = victims(room.holders, index, missing - going, self.now) if missing > going else None
            for name in found.names if found is not None else ():
                engine = self.engines[name]
                if not self.disturbs(engine):
                    self.notify(name, explain_memory.goes_for_the_budget(engine, index))
                    sleeps = found is not None and found.may_sleep and engine.state is State.READY
                    if not (sleeps and self.fall_asleep(engine, explain_memory.FOR_THE_BUDGET)):
                        self.end_idle(self.engines[name])
            self.wake_times += [
                eviction.free_from(engine)
                for engine in room.holders
                if engine.is_idle and not engine.spec.keep
            ]
        self.state = replace(self.state, is_overfull=is_overfull)

    def is_out_of_reach(self, engine: Engine, claimed: frozenset[int], *, in_full: bool) -> bool:
        """Most of those who wait have only to go on waiting, as a short look tells."""
        overdue_at = queue.overdue_at(engine)
        if self.now >= overdue_at or not engine.is_wanted or engine.hopeless_since is not None:
            return False
        found = placement.out_of_reach(engine, self.reach(claimed))
        if found is None:
            return False
        room, need_bytes = found
        left = self.left_on(room) if in_full else explain_memory.OTHERS_BEFORE
        self.wait(engine, explain_memory.waits_for_room(engine, need_bytes, left))
        self.wake_times.append(overdue_at)
        return True

    def wait(self, engine: Engine, reason: str) -> None:
        """Keep why it waits; the reason changes with every lease of its holder, so it is told once."""
        if not engine.phase:
            self.notify(engine.name, f"{engine.name} {reason}")
        if reason != engine.phase:
            self.put(replace(engine, phase=reason))

    def make_room(self, engine: Engine, models: tuple[str, ...], *, may_sleep: bool) -> None:
        """Have idle engines give way to `engine`."""
        for name in models:
            self.give_way(self.engines[name], engine, may_sleep=may_sleep)
        self.wait(self.engines[engine.name], explain_memory.makes_room(models))

    def wait_for_room(
        self, engine: Engine, choice: Wait, claimed: frozenset[int], yields: dict[str, str]
    ) -> frozenset[int]:
        """It cannot be placed now. Returns the GPUs that are spoken for: nobody overtakes it there.

        (1) what is in its way will not move by itself -> look again for a while, then refuse
        (2) it is a matter of moments                  -> spoken for
        (3) it has waited for long enough              -> those in use yield, and spoken for
        (4) otherwise others may use what it cannot

        A sleeper that cannot wake where it is, and could run elsewhere, is started there: (1) and (3).
        """
        if choice.is_hopeless:  # (1)
            if self.moves_elsewhere(engine, claimed):
                return frozenset()
            since = self.now if engine.hopeless_since is None else engine.hopeless_since
            engine = self.put(replace(engine, hopeless_since=since))
            self.wait(engine, choice.reason)
            if self.now >= since + SETTLE_S:
                self.refuse_for_now(
                    self.engines[engine.name], explain_memory.no_room_now(engine, choice.reason)
                )
            else:
                self.wake_times.append(self.now + LOOK_AGAIN_S)
                self.sample_soon()
            return frozenset()
        if engine.hopeless_since is not None:
            engine = self.put(replace(engine, hopeless_since=None))
        self.wait(engine, choice.reason)
        if choice.is_soon:  # (2)
            return frozenset(choice.gpus)
        if not queue.is_overdue(engine, self.now):  # (4)
            self.wake_times.append(queue.waits_since(engine) + queue.fair_wait_s(engine))
            return frozenset()
        if self.moves_elsewhere(engine, claimed):
            return frozenset()
        match placement.choose(engine, self.rooms(), claimed, self.now, even_busy=True):  # (3)
            case Evict(gpus, models, may_sleep):
                if not any(self.engines[name].leases for name in models):
                    # Asleep or yielding already, and waited for themselves: it is not their turn.
                    self.make_room(engine, models, may_sleep=may_sleep)
                else:
                    yields |= dict.fromkeys(models, engine.name)
                return frozenset(gpus)
            case _:  # something moves there, or came a moment ago: no further start may get in between
                return frozenset(choice.gpus)

    def moves_elsewhere(self, engine: Engine, claimed: frozenset[int]) -> bool:
        """Stop a sleeper whose place is taken, where there is room on other GPUs: it is started there."""
        if engine.state is not State.SLEEPING or engine.spec.pinned is not None:
            return False
        elsewhere = replace(engine, state=State.QUEUED)
        if not isinstance(placement.choose(elsewhere, self.rooms(), claimed, self.now), Place):
            return False
        self.notify(engine.name, explain_memory.moves(engine))
        self.stop(engine)
        return True

    def refuse_for_now(self, engine: Engine, text: str) -> None:
        """Who waits is told, and the next request looks again."""
        engine = self.reject_all(engine, "no_vram", text, 30.0)
        self.notify(engine.name, text, is_bad=True)
        engine = replace(engine, wanted=False, last_error=text, hopeless_since=None, phase="")
        self.put(engine.to(State.STOPPED, self.now) if engine.state is State.QUEUED else engine)

    def give_way(self, engine: Engine, to: Engine, *, may_sleep: bool) -> None:
        """Have an idle engine make room, asleep if that is enough."""
        if engine.state not in (State.READY, State.SLEEPING):  # it ended for the sake of main memory
            return
        if engine.spec.comes_back:
            self.state = replace(self.state, displaced=engine.name)
        sleeps = may_sleep and engine.state is State.READY and can_sleep(engine)
        if sleeps and self.fall_asleep(engine, explain_memory.for_the_sake_of(to.name)):
            return
        engine = self.engines[engine.name]
        self.notify(engine.name, explain_memory.evicted(engine, to.name))
        self.end_idle(engine)

    def settle_yields(self, yields: dict[str, str]) -> None:
        """Engines in use that are in the way of who waited too long take no new requests, others do again."""
        for engine in self.holders():
            if not yields and not engine.yields_to:
                continue
            to = yields.get(engine.name, "")
            if engine.yields_to == to or engine.state is not State.READY:
                continue
            engine = self.put(replace(engine, yields_to=to))
            if to:
                self.notify(engine.name, explain_memory.yields(engine, self.engines[to], self.now))
            else:
                self.notify(engine.name, explain_memory.takes_again(engine))
                self.advance(engine)

    def watch_rooms(self) -> None:
        """Some wait for room: be woken when an idle neighbour may give way, or a GPU should have settled."""
        for engine in self.holders():
            if engine.spec.keep:
                continue
            if engine.is_idle:
                self.wake_times.append(eviction.free_from(engine))
            elif engine.state is State.READY:  # may be asked to yield from then on
                self.wake_times.append(engine.since + engine.spec.min_residency_s)
            if engine.state is State.READY and self.now < engine.since + SETTLE_S:
                self.wake_times.append(engine.since + SETTLE_S)  # nobody looked
        for index, room in self.rooms().items():
            if not room.is_settled:
                self.wake_times += [self.now + LOOK_AGAIN_S, self.state.freed_at[index] + SETTLE_S]
                self.sample_soon()

    # --- what starts by itself

    def start_asked(self, engine: Engine) -> None:
        if engine.state is State.READY or self.state.stopping or engine.spec.closed:
            return
        if engine.state in (State.BACKOFF, State.FAILED):
            learnt = replace(engine.learnt, is_exhausted=False)
            engine = engine.to(State.STOPPED, self.now, failures=(), learnt=learnt)
        if not engine.is_wanted:
            engine = replace(engine, wanted_since=self.now)
        self.advance(replace(engine, wanted=True))

    def start_by_itself(self) -> bool:
        """Ask for one model that nobody asks for now; False: there is none."""
        return self.advance_preload() or self.bring_back()

    def advance_preload(self) -> bool:
        """Start the next model of the preload list once the one before it is up or has failed."""
        current = self.engines.get(self.state.preloading)
        if current is not None and current.spec.closed:
            current = None  # it does not come any more
        if not self.state.preload or (
            current is not None and (current.state not in SETTLED or wants_room(current))
        ):
            return False
        name, *rest = self.state.preload
        self.state = replace(self.state, preload=tuple(rest), preloading=name)
        engine = self.engines.get(name)
        if engine is not None and not engine.learnt.is_exhausted:  # that takes a person
            self.start_asked(engine)
        return True

    def bring_back(self) -> bool:
        """Start the default model again once there is room, or who has its room was idle for a while."""
        name = self.state.displaced
        if not name or any(map(wants_room, self.active())):
            return False
        engine = self.engines.get(name)
        if engine is None or self.state.stopping or engine.state not in (State.STOPPED, State.SLEEPING):
            if engine is None or engine.state not in (State.DRAINING, State.STOPPING):
                self.state = replace(self.state, displaced="")
            return False
        if engine.is_wanted or is_moving(engine) or engine.spec.closed:
            return False
        if not placement.impossible(engine, self.state):
            match placement.choose(engine, self.rooms(), frozenset(), self.now):
                case Evict(_, models):
                    at = max(self.engines[each].last_used for each in models) + RETURN_AFTER_S
                    if self.now < at:
                        self.wake_times.append(at)
                        return False
                case Wait():
                    self.wake_times.append(self.now + RETURN_AFTER_S)
                    return False
                case Place():
                    pass
        self.state = replace(self.state, displaced="")
        self.notify(name, explain.comes_back(name))
        self.start_asked(engine)
        return True


def wants_room(engine: Engine) -> bool:
    """Prepared, or asleep and wanted."""
    state = engine.state
    if state is State.QUEUED:
        return True
    return state is State.SLEEPING and engine.asleep_at is not None and engine.is_wanted

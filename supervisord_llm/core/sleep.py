"""Falling asleep: whether there is main memory for it, and what is taken to come free."""

from supervisord_llm.core import explain_memory
from supervisord_llm.core.eviction import can_sleep, cost_s
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import residue_bytes
from supervisord_llm.core.room import is_measuring, is_moving
from supervisord_llm.core.state import State
from supervisord_llm.core.turn import Turn


class Sleep(Turn):
    """Puts engines to sleep, within the main memory that sleepers may hold."""

    def fall_asleep(self, engine: Engine, why: str) -> bool:
        """Put an idle engine to sleep, if there is main memory for it; else nothing changes."""
        if not can_sleep(engine) or not self.make_ram_for(engine):
            return False
        self.notify(engine.name, explain_memory.falls_asleep(engine, why))
        self.sleep(self.engines[engine.name])
        return True

    def take_as_given_back(self, engine: Engine) -> None:
        """It sleeps, and none can see what it holds on to."""
        residue = tuple(residue_bytes(engine, index) for index in engine.gpus)
        self.put(replace(engine, granted_bytes=residue, used_bytes=None, gave_back=True))
        self.notify(engine.name, explain_memory.sleeps(engine, None))

    def make_ram_for(self, engine: Engine) -> bool:
        """See that [host] ram_budget allows one more sleeper; others that sleep are stopped for it."""
        budget, need = self.state.policy.host_budget_bytes, ram_bytes(engine)
        if budget is None or need == 0:
            return True
        if need > budget:
            reason = explain_memory.no_ram_to_sleep(engine, need, budget)
            self.give_up_sleep(engine, reason)
            return False
        asleep = [other for other in self.holders() if other.state in (State.SLEEPING, State.WAKING)]
        missing = sum(map(ram_bytes, asleep)) + need - budget
        chosen: list[Engine] = []
        for other in sorted(asleep, key=lambda other: (cost_s(other, self.now), other.last_used)):
            if missing <= 0:
                break
            if other.is_idle and not is_moving(other) and not self.disturbs(other) and ram_bytes(other):
                chosen.append(other)
                missing -= ram_bytes(other)
        if missing > 0:
            return False
        for other in chosen:
            self.notify(other.name, explain_memory.gives_ram_up(other, engine.name))
            self.stop(other)
        return True

    def give_up_sleep(self, engine: Engine, reason: str) -> Engine:
        self.notify(engine.name, explain_memory.sleepless(engine, reason), is_bad=True)
        return self.put(replace(engine, sleepless=reason))

    def disturbs(self, engine: Engine, but: str = "") -> bool:
        """A start, not that of `but`, is under way on its GPUs: memory coming free would confuse it."""
        return any(
            is_measuring(other) and other.name != but and not set(other.gpus).isdisjoint(engine.gpus)
            for other in self.holders()
        )


def ram_bytes(engine: Engine) -> int:
    """What it takes of main memory while it sleeps: its weights at level 1, next to nothing at level 2."""
    if engine.spec.sleep_level != 1 or not engine.gpus:
        return 0
    return sum(engine.awake_bytes) if engine.estimate is None else engine.estimate.host_bytes

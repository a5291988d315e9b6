"""What looking at GPUs and engines tells: footprints, engines above their grant, lost cards, sleepers."""

from types import MappingProxyType

from supervisord_llm.core import explain_memory
from supervisord_llm.core.allocation import Allocation
from supervisord_llm.core.events import GpusSampled, TokensCounted
from supervisord_llm.core.fleet import Engine, GpuSample
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import RESIDUE_BYTES, held_on
from supervisord_llm.core.room import LOOK_AGAIN_S, SETTLE_S
from supervisord_llm.core.state import HAS_PROCESS, State

OVER_S = 5.0
"""For so long an engine must be above its grant before anything is done: peaks pass."""

LEAST_FOOTPRINT_BYTES = 128 * 1024**2
"""Less is no engine: a CUDA context alone takes more. Differences of a whole card are noise below that."""

FOOTPRINT_STEP_BYTES = 32 * 1024**2
"""A footprint that grew by less is the same one."""


class Watch(Allocation):
    """Takes measurements as facts and acts on them."""

    def sampled(self, event: GpusSampled) -> None:
        """Keep the figures; then see what each engine holds."""
        before, came_back = self.state.samples, False
        for sample in event.samples:
            was = before.get(sample.index)
            if sample.lost and (was is None or not was.lost):
                self.notify("", explain_memory.gpu_is_lost(sample.index, sample.lost), is_bad=True)
            elif was is not None and was.lost and not sample.lost:
                self.notify("", explain_memory.gpu_is_back(sample.index))
                came_back = True
            elif was is not None and (was.used_bytes is None) is not (sample.used_bytes is None):
                tells = sample.used_bytes is not None
                say = explain_memory.figures_back if tells else explain_memory.figures_gone
                self.notify("", say(sample.index), is_bad=not tells)
        samples = {**before, **{sample.index: sample for sample in event.samples}}
        self.state = replace(self.state, samples=MappingProxyType(samples))
        self._rooms = None
        for name in [engine.name for engine in self.holders()]:
            engine = self.engines[name]  # those before it may have moved it
            if engine.gpus:
                self.look_at(engine)
        if came_back:
            self.return_kept()

    def return_kept(self) -> None:
        """A lost GPU answers again: what is to be kept, and was given up for a fact of the host, starts."""
        for engine in tuple(self.engines.values()):
            if engine.spec.keep and engine.state is State.FAILED and self.now >= engine.retry_at:
                self.advance(replace(engine, wanted=True))

    def look_at(self, engine: Engine) -> None:
        samples = [self.state.samples[index] for index in engine.gpus if index in self.state.samples]
        lost = next((sample for sample in samples if sample.lost), None)
        if lost is not None:
            self.end_on_lost_gpu(engine, lost)
            return
        if len(samples) < len(engine.gpus) or min(sample.at for sample in samples) <= engine.since:
            return  # the look is older than the state
        if engine.state is State.READY:
            self.measure(engine, samples)
        elif engine.state is State.SLEEPING and engine.asleep_at is not None:
            self.measure_asleep(engine, samples, engine.asleep_at)

    def end_on_lost_gpu(self, engine: Engine, sample: GpuSample) -> None:
        """Nothing it says can be trusted, and it may not even die. Who waits may be served elsewhere."""
        if engine.state in HAS_PROCESS - {State.STOPPING, State.STUCK}:
            text = explain_memory.gpu_lost(engine, sample.index, sample.lost)
            self.notify(engine.name, text, is_bad=True)
            wanted = engine.wanted or engine.spec.keep
            self.stop(replace(engine, kill_reason=text, wanted=wanted), kill=True)

    # --- awake

    def measure(self, engine: Engine, samples: list[GpuSample]) -> None:
        """Learn its footprint, and hold it to its grant."""
        if not engine.is_looked_at:
            engine = self.put(replace(engine, is_looked_at=True))
            self.room_changed = True
        used = own_bytes(engine, samples)
        if used is None and engine.used_bytes is None:
            used = self.told_by_difference(engine, samples)
        if used is None:
            if engine.used_bytes is None:
                self.see_whether_it_shows(engine, samples)
            return
        if used != engine.used_bytes:
            engine = self.put(replace(engine, used_bytes=used))
        known = engine.learnt.footprint_bytes
        if known is None or max(used) > known + FOOTPRINT_STEP_BYTES:
            engine = self.learn(engine, replace(engine.learnt, footprint_bytes=max(used)))
        self.enforce(engine, used)

    def see_whether_it_shows(self, engine: Engine, samples: list[GpuSample]) -> None:
        """Its GPUs are no fuller than before its launch: these figures do not tell of it."""
        grown = _difference(engine, samples, sign=1)
        is_invisible = grown is not None and max(grown, default=0) < LEAST_FOOTPRINT_BYTES
        if is_invisible is not engine.is_invisible:
            self.put(replace(engine, is_invisible=is_invisible))

    def told_by_difference(self, engine: Engine, samples: list[GpuSample]) -> tuple[int, ...] | None:
        """How much fuller its GPUs are than before its launch, if that can be it alone.

        Less than what it must hold, or more than it may, is somebody else's coming or going meanwhile: nobody
        is ended, nor given another grant, for that.
        """
        used = grown_bytes(engine, samples)
        estimate, tolerance = engine.estimate, 1.0 + self.state.policy.tolerance
        least = LEAST_FOOTPRINT_BYTES
        if estimate is not None:
            least += estimate.weights_bytes + (engine.learnt.kv_bytes or 0)
        if used is None or min(used) < least:
            return None
        if any(size > may * tolerance for size, may in zip(used, engine.granted_bytes, strict=True)):
            return None
        return used

    def enforce(self, engine: Engine, used: tuple[int, ...]) -> None:
        """An engine above its grant, for long enough:

        (1) its grant was our own estimate and the budget has room -> it is granted what it takes
        (2) enforce = "observe"                                    -> told once
        (3) enforce = "restart", "stop"                            -> drained and ended, and started again
        """
        tolerance = 1.0 + self.state.policy.tolerance
        if all(size <= may * tolerance for size, may in zip(used, engine.granted_bytes, strict=True)):
            if engine.over_since is not None:
                self.put(replace(engine, over_since=None))
            return
        since = self.now if engine.over_since is None else engine.over_since
        engine = self.put(replace(engine, over_since=since))
        if engine.spec.grant is None and self.fits(engine):  # (1)
            self.notify(engine.name, explain_memory.regranted(engine, max(used)))
            granted = tuple(map(max, used, engine.granted_bytes))
            self.put(replace(engine, granted_bytes=granted, awake_bytes=granted, over_since=None))
            return
        if self.now < since + OVER_S:
            self.wake_times.append(since + OVER_S)
            return
        text = explain_memory.above_grant(engine, used)
        if explain_memory.BREAKS_THE_LAW not in engine.told:  # once: the figures change with every look
            self.notify(engine.name, text, is_bad=True)
            engine = self.put(replace(engine, told=engine.told | {explain_memory.BREAKS_THE_LAW}))
        if self.state.policy.enforce == "observe":  # (2)
            return
        returns = self.state.policy.enforce == "restart"  # (3)
        engine = replace(engine, returns=returns, wanted=returns and engine.spec.keep)
        self.take_down(replace(engine, kill_reason=text, last_error=text), explain_memory.BREAKS_THE_LAW)

    def fits(self, engine: Engine) -> bool:
        """Whether what it uses, beside what the others hold, is within the budgets."""
        return all(
            sum(held_on(other, index) for other in self.holders()) <= self.state.gpus[index].budget_bytes
            for index in engine.gpus
            if index in self.state.gpus
        )

    # --- asleep

    def fell_asleep(self, engine: Engine) -> None:
        """It says it sleeps. Its memory counts as free once it is seen to be, or at once if none can see."""
        self.freed(engine)
        engine = self.put(replace(engine, asleep_at=self.now))
        if not engine.gpus or any(used is None for used in self.used_on(engine.gpus)):
            self.take_as_given_back(engine)
        self.nudge_neighbours(engine.gpus)

    def measure_asleep(self, engine: Engine, samples: list[GpuSample], asleep_at: float) -> None:
        """See that its memory came free, once; a sleeper that keeps it is ended."""
        if engine.gave_back or min(sample.at for sample in samples) <= asleep_at:
            return
        held = own_bytes(engine, samples) or shrunk_bytes(engine, samples)
        if held is None:
            self.take_as_given_back(engine)
            return
        # A small model's residue is most of it: what counts is whether sleep gave anything worth having.
        if all(
            size <= max(may / 2, RESIDUE_BYTES) for size, may in zip(held, engine.awake_bytes, strict=True)
        ):
            residue = tuple(map(min, held, engine.awake_bytes))
            engine = self.put(replace(engine, granted_bytes=residue, used_bytes=held, gave_back=True))
            engine = self.learn(engine, replace(engine.learnt, residue_bytes=max(held)))
            self.notify(engine.name, explain_memory.sleeps(engine, max(residue)))
            self.nudge_neighbours(engine.gpus)
            return
        if self.now < asleep_at + SETTLE_S:
            self.wake_times.append(self.now + LOOK_AGAIN_S)
            self.sample_soon()
            return
        self.stop(self.give_up_sleep(engine, explain_memory.kept_its_memory(engine, max(held))))

    # --- tokens

    def counted(self, engine: Engine, event: TokensCounted) -> None:
        """A count that moved, or nothing to do, is progress; one that does not tell is not asked again."""
        if event.running is None:
            engine = replace(engine, counted_at=float("inf"))
        elif event.running == 0 or event.tokens != engine.tokens:
            engine = replace(engine, tokens=event.tokens, tokens_at=self.now)
        self.advance(engine)


def own_bytes(engine: Engine, samples: list[GpuSample]) -> tuple[int, ...] | None:
    """What its processes hold of each of its GPUs; None where the driver does not tell."""
    held = [None if sample.engines is None else sample.engines.get(engine.name) for sample in samples]
    return tuple(size for size in held if size is not None) if None not in held else None


def grown_bytes(engine: Engine, samples: list[GpuSample]) -> tuple[int, ...] | None:
    """How much fuller each of its GPUs is than before its launch: its own, as nothing else started there."""
    grown = _difference(engine, samples, sign=1)
    return grown if grown is not None and min(grown) >= LEAST_FOOTPRINT_BYTES else None


def shrunk_bytes(engine: Engine, samples: list[GpuSample]) -> tuple[int, ...] | None:
    """What is left of its grants after what came free of each GPU since it was told to sleep."""
    freed = _difference(engine, samples, sign=-1)
    if freed is None:
        return None
    return tuple(max(0, may - size) for may, size in zip(engine.awake_bytes, freed, strict=True))


def _difference(engine: Engine, samples: list[GpuSample], *, sign: int) -> tuple[int, ...] | None:
    found = []
    for before, sample in zip(engine.before_bytes, samples, strict=True):
        if before is None or sample.used_bytes is None:
            return None
        found.append(sign * (sample.used_bytes - before))
    return tuple(found)

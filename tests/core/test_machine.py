"""Whatever happens, in whatever order: the promises hold.

A Hypothesis machine plays the world against the core: clients that come and leave, engines that load, sleep,
crash, hang or will not die, GPUs that are looked at, fill up and get lost, people who press buttons, files
that change, time that passes. It performs effects the way the runtime does, so an effect for a launch that
does not exist fails here too.
"""

import math
from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from supervisord_llm.core.effects import (
    Admit,
    CancelPrepare,
    CountTokens,
    Effect,
    Prepare,
    Reject,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeAt,
    WakeEngine,
)
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import (
    Cause,
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    Estimated,
    Event,
    FellAsleep,
    GpusSampled,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    SleepAsked,
    SleepFailed,
    StartAsked,
    StopAsked,
    Tick,
    TokensCounted,
    WakeFailed,
    Woke,
)
from supervisord_llm.core.fleet import GpuSample, ModelSpec, Policy, Stranger
from supervisord_llm.core.ledger import held_bytes
from supervisord_llm.core.room import SETTLE_S
from supervisord_llm.core.sleep import ram_bytes
from supervisord_llm.core.state import HAS_PROCESS, RUNS_OR_WILL, State
from tests.core.world import GIB, World, gpu

SPECS = (
    ModelSpec(name="cpu", stop_after_s=50, restart_tries=2, signature="1"),
    ModelSpec(name="big", pinned=(0,), stop_after_s=100, min_residency_s=5),
    ModelSpec(name="half", pinned=None, grant=10 * GIB, max_concurrent=1),
    ModelSpec(
        name="half2", pinned=(0,), grant=10 * GIB, max_concurrent=1, queue_when_busy=True, queue_size=3
    ),
    ModelSpec(name="pair", pinned=None, gpu_count=2, queue_timeout_s=40),
    ModelSpec(name="kept", pinned=(1,), grant=5 * GIB, keep=True, sleep_level=1, sleep_after_s=1),
    ModelSpec(name="never", pinned=(0,), grant=99 * GIB),
    ModelSpec(name="naps", pinned=None, grant=6 * GIB, sleep_level=1, sleep_after_s=20, min_residency_s=0),
    ModelSpec(name="dozes", pinned=(0,), sleep_level=1, sleep_after_s=5, max_num_seqs=8, stop_after_s=60),
    ModelSpec(name="far", elsewhere=True, stop_after_s=None, max_concurrent=2, queue_when_busy=True),
    ModelSpec(name="drops", pinned=None, grant=14 * GIB, sleep_level=2, comes_back=True, max_num_seqs=8),
)
GPUS = (gpu(0), gpu(1))
NAMES = st.sampled_from([spec.name for spec in SPECS])
HOST_BUDGET = 16 * GIB
POLICY = Policy(host_budget_bytes=HOST_BUDGET)
ESTIMATE = Estimate(
    weights_bytes=4 * GIB,
    kv_bytes=3 * GIB,
    least_kv_bytes=GIB,
    overhead_bytes=GIB,
    host_bytes=4 * GIB,
    max_model_len=8192,
    sequences=4,
    kv_bytes_per_token=1,
)
PEOPLE = (StopAsked, RestartAsked, SleepAsked, ConfigChanged, ShutdownBegan)


class Supervisor(RuleBasedStateMachine):
    """The world around `step`."""

    open_requests = Bundle("open_requests")

    def __init__(self) -> None:
        super().__init__()
        self.world = World.of(*SPECS, gpus=GPUS, preload=("cpu", "kept"), policy=POLICY)
        self.specs: tuple[ModelSpec, ...] = SPECS
        self.preparing: set[tuple[str, int]] = set()
        self.alive: dict[tuple[str, int], tuple[int, ...]] = {}
        self.uses: dict[tuple[str, int], int] = {}
        """Bytes of each of its GPUs that an engine really holds."""
        self.asked_to_end: set[tuple[str, int]] = set()
        self.told: dict[tuple[str, int], str] = {}
        """Who is asked to sleep or wake, and has not answered."""
        self.waiting: dict[int, str] = {}
        self.leased: dict[int, str] = {}
        self.served_by: dict[int, tuple[str, int]] = {}
        self.strange = dict.fromkeys((0, 1), 0)
        self.lost: set[int] = set()
        self.freed_at: dict[int, float] = {}
        self.looked_at: dict[int, float] = {}
        self.oom: dict[tuple[str, str], dict[str, int]] = {}
        """By model and signature: the flags with which it ran out of GPU memory."""
        self.started_as: dict[tuple[str, int], tuple[str, dict[str, int]]] = {}
        self.excused: set[str] = set()
        """Kept engines that a person, or a fault of their own, took down."""
        self.drain_began: dict[str, float] = {}
        self.perform(self.world.effects)

    def happen(self, event: Event) -> None:
        before = {engine.name: engine.state for engine in self.world.fleet}
        if isinstance(event, PEOPLE):
            self.excused |= {event.model} if hasattr(event, "model") else set(before)
        self.perform(self.world.happen(event))
        for engine in self.world.fleet:
            if engine.state is State.DRAINING and before.get(engine.name) is State.READY and engine.leases:
                assert isinstance(event, PEOPLE) or engine.kill_reason, "busy, and told to make room"

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Prepare(model=model, launch=launch):
                    self.preparing.add((model, launch))
                case CancelPrepare(model=model, launch=launch):
                    self.preparing.remove((model, launch))
                case StartEngine():
                    self.launch(effect)
                case SleepEngine(model=model, launch=launch, level=level):
                    assert model not in self.leased.values(), "puts a busy engine to sleep"
                    assert level in (1, 2)
                    assert not self.world[model].spec.keep
                    assert (model, launch) in self.alive
                    self.told[model, launch] = "sleep"
                case WakeEngine(model=model, launch=launch):
                    self.check_place(model, self.alive[model, launch])
                    self.told[model, launch] = "wake"
                case StopEngine():
                    self.end(effect)
                case CountTokens(model=model, launch=launch):
                    assert (model, launch) in self.alive
                case Admit(request=request, model=model):
                    assert self.waiting.pop(request) == model
                    assert (model, self.world[model].launch) in self.alive, "admitted to a dead engine"
                    self.leased[request] = model
                    self.served_by[request] = model, self.world[model].launch
                case Reject(request=request, model=model, message=message):
                    del self.waiting[request]
                    assert message.strip()
                case WakeAt(at=at):
                    assert at == at, "not a time"
                case _:
                    pass
        self.drain_began = {
            engine.name: engine.since for engine in self.world.fleet if engine.state is State.DRAINING
        }

    def launch(self, effect: StartEngine) -> None:
        model, key = effect.model, (effect.model, effect.launch)
        assert not [other for other in self.alive if other[0] == model], "two engines of a model"
        self.check_place(model, effect.gpus)
        spec = self.world[model].spec
        assert self.oom.get((model, spec.signature)) != effect.adjusted, "an OOM is tried again unchanged"
        self.alive[key] = effect.gpus
        self.uses[key] = 0
        self.started_as[key] = spec.signature, dict(effect.adjusted)
        self.excused.discard(model)

    def check_place(self, model: str, gpus: tuple[int, ...]) -> None:
        """No other start there, and what was given up last is seen to be free, or should have been."""
        for name, _ in self.alive:
            engine = self.world[name]
            starting = engine.state in (State.STARTING, State.WAKING) and name != model
            assert not (starting and set(engine.gpus) & set(gpus)), "two starts on a GPU"
        for index in gpus:
            assert index not in self.lost
            freed_at, sample = self.freed_at.get(index), self.world.fleet.samples.get(index)
            if freed_at is not None and sample is not None and sample.used_bytes is not None:
                settled = self.looked_at[index] > freed_at or self.world.now >= freed_at + SETTLE_S
                assert settled, "launched before the memory settled"

    def end(self, effect: StopEngine) -> None:
        model, key = effect.model, (effect.model, effect.launch)
        engine = self.world[model]
        assert key in self.alive, "stops what does not run"
        if any(self.served_by[request] == key for request in self.leased):
            spec, began = engine.spec, self.drain_began.get(model, math.inf)
            late = self.world.now >= began + spec.drain_timeout_s and (
                self.world.now >= spec.closes_at or not spec.closed
            )
            assert late or (effect.kill and engine.kill_reason), "cuts requests off for no reason"
        if engine.spec.keep:
            assert model in self.excused or engine.kill_reason, "ends what is to be kept"
        self.told.pop(key, None)
        self.asked_to_end.add(key)

    # --- clients

    @rule(target=open_requests, model=NAMES, priority=st.integers(0, 2))
    def request_arrives(self, model: str, priority: int) -> int:
        request = next(self.world.requests)
        self.waiting[request] = model
        self.happen(RequestArrived(request=request, model=model, priority=priority))
        return request

    @rule(request=open_requests)
    def client_leaves_or_finishes(self, request: int) -> None:
        if model := self.waiting.pop(request, None):
            self.happen(RequestCancelled(request=request, model=model))
        elif model := self.leased.pop(request, None):
            self.happen(RelayFinished(request=request, model=model))

    # --- engines

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), outcome=st.sampled_from(["done", "done", "temporary", "hopeless", "progress"]))
    def preparation_ends(self, data: st.DataObject, outcome: str) -> None:
        model, launch = data.draw(st.sampled_from(sorted(self.preparing)))
        if outcome == "progress":
            self.happen(Progressed(model=model, launch=launch, phase="downloading", fraction=0.5))
            return
        self.preparing.remove((model, launch))
        if outcome == "done":
            self.happen(Prepared(model=model, launch=launch))
        else:
            self.happen(
                PrepareFailed(model=model, launch=launch, reason="no", temporary=outcome == "temporary")
            )

    @rule(model=NAMES, stale=st.booleans(), factor=st.sampled_from([1, 2, 9]))
    def is_estimated(self, model: str, stale: bool, factor: int) -> None:
        if engine := self.world.fleet.engines.get(model):
            signature = "stale" if stale else engine.spec.signature
            grown = replace(ESTIMATE, weights_bytes=factor * ESTIMATE.weights_bytes)
            if (model, engine.launch) in self.preparing and factor == 9 and not stale:
                self.happen(Estimated(model=model, signature=signature, estimate=grown))
            else:
                self.happen(Estimated(model=model, signature=signature, estimate=ESTIMATE))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), share=st.sampled_from([0.5, 0.9, 1.0, 1.3]), kv=st.sampled_from([None, GIB]))
    def engine_gets_ready(self, data: st.DataObject, share: float, kv: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive)))
        engine = self.world[key[0]]
        if engine.state is State.STARTING:
            self.uses[key] = int(share * max(engine.granted_bytes, default=0))
        self.happen(EngineReady(model=key[0], launch=key[1], kv_bytes=kv))

    @precondition(lambda self: self.told)
    @rule(data=st.data(), works=st.booleans(), keeps_memory=st.booleans())
    def engine_falls_asleep_or_wakes(self, data: st.DataObject, works: bool, keeps_memory: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.told)))
        model, launch = key
        match self.told.pop(key), works:
            case "sleep", True:
                if not keeps_memory:
                    self.uses[key] = min(GIB, self.uses[key])
                self.mark_freed(self.alive[key])
                self.happen(FellAsleep(model=model, launch=launch))
            case "sleep", False:
                self.happen(SleepFailed(model=model, launch=launch, reason="no"))
            case _, True:
                self.uses[key] = max(self.world[model].granted_bytes, default=0)
                self.happen(Woke(model=model, launch=launch))
            case _, False:
                self.happen(WakeFailed(model=model, launch=launch, reason="no"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), cause=st.sampled_from(Cause))
    def engine_exits(self, data: st.DataObject, cause: Cause) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive)))
        model, engine = key[0], self.world[key[0]]
        asked = engine.state in (State.STOPPING, State.STUCK, State.DRAINING) and not engine.kill_reason
        if cause is Cause.GPU_OOM and not asked:
            signature, adjusted = self.started_as[key]
            self.oom[model, signature] = adjusted
        self.mark_freed(self.alive.pop(key))
        self.asked_to_end.discard(key)
        self.told.pop(key, None)
        self.happen(EngineExited(model=model, launch=key[1], reason="exited", cause=cause))
        assert self.world[model].state is not State.READY if model in self.world.fleet.engines else True

    @precondition(lambda self: self.asked_to_end)
    @rule(data=st.data())
    def engine_will_not_die(self, data: st.DataObject) -> None:
        model, launch = data.draw(st.sampled_from(sorted(self.asked_to_end)))
        self.happen(EngineStuck(model=model, launch=launch))

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), running=st.sampled_from([None, 0, 2]), tokens=st.sampled_from([7.0, 8.0]))
    def engine_is_counted(self, data: st.DataObject, running: int | None, tokens: float) -> None:
        model = data.draw(st.sampled_from(sorted(set(self.leased.values()))))
        launch = self.world[model].launch
        self.happen(TokensCounted(model=model, launch=launch, running=running, tokens=tokens))

    @rule(rounds=st.sampled_from([1, 2, 4]), clients_too=st.booleans())
    def all_goes_well(self, rounds: int, clients_too: bool) -> None:
        """Everybody does as asked: this is how the machine gets anywhere."""
        for _ in range(rounds):
            for model, launch in sorted(self.preparing):
                if (model, launch) in self.preparing:
                    self.preparing.remove((model, launch))
                    self.happen(Prepared(model=model, launch=launch))
            for key in sorted(self.alive):
                self.does_as_asked(key)
            if clients_too:
                for request in sorted(self.leased):
                    self.client_leaves_or_finishes(request)

    @rule(seed=st.integers(0, 2**20), count=st.sampled_from([1, 5, 25]))
    def an_ordinary_while(self, seed: int, count: int) -> None:
        """Many things, in none of which anybody fails: the states that this leads to are deep."""
        names = [spec.name for spec in SPECS]
        random = Random(seed)
        for _ in range(count):
            match random.choice(["request", "request", "finish", "well", "time", "look"]):
                case "request":
                    self.request_arrives(random.choice(names), random.randint(0, 2))
                case "finish" if self.leased:
                    self.client_leaves_or_finishes(random.choice(sorted(self.leased)))
                case "well":
                    self.all_goes_well(random.choice([1, 2, 4]), random.random() < 0.3)
                case "time":
                    self.time_passes(random.choice([0.5, 5, 12, 40, 70]))
                case _:
                    self.gpus_are_looked_at("all", 0, random.choice([0.0, 3.0]))
            for holds in ALWAYS:
                holds(self)

    def does_as_asked(self, key: tuple[str, int]) -> None:
        (model, launch), engine = key, self.world[key[0]]
        if key in self.asked_to_end:
            self.asked_to_end.remove(key)
            self.mark_freed(self.alive.pop(key))
            self.happen(EngineExited(model=model, launch=launch, reason="ended"))
        elif self.told.get(key) == "sleep":
            self.told.pop(key)
            self.uses[key] = min(GIB, self.uses[key])
            self.mark_freed(self.alive[key])
            self.happen(FellAsleep(model=model, launch=launch))
        elif self.told.pop(key, "") == "wake":
            self.uses[key] = max(engine.granted_bytes, default=0)
            self.happen(Woke(model=model, launch=launch))
        elif engine.state is State.STARTING:
            self.uses[key] = max(engine.granted_bytes, default=0)
            self.happen(EngineReady(model=model, launch=launch))

    # --- GPUs

    def mark_freed(self, gpus: tuple[int, ...]) -> None:
        self.freed_at |= dict.fromkeys(gpus, self.world.now)

    @rule(
        told=st.sampled_from(["all", "all", "wsl", "some", "nothing"]),
        lingering=st.sampled_from([0, 0, 7 * GIB]),
        age_s=st.sampled_from([0.0, 0.2, 3.0]),
    )
    def gpus_are_looked_at(self, told: str, lingering: int, age_s: float) -> None:
        self.world.now += 0.25
        samples = []
        for index in (0, 1):
            at = self.world.now - age_s
            if index in self.lost:
                samples.append(GpuSample(index=index, at=at, lost="fell off the bus"))
                continue
            engines = {key[0]: self.uses[key] for key, gpus in self.alive.items() if index in gpus}
            used = sum(engines.values()) + self.strange[index] + lingering
            if told == "some":
                engines = dict(list(engines.items())[1:])
            stranger = Stranger(pid=1, name="x", used_bytes=self.strange[index])
            self.looked_at[index] = at
            samples.append(
                GpuSample(
                    index=index,
                    at=at,
                    used_bytes=None if told == "nothing" else used,
                    engines=engines if told in ("all", "some") else None,
                    strangers=(stranger,) if told == "all" and stranger.used_bytes else (),
                )
            )
        self.happen(GpusSampled(samples=tuple(samples)))

    @rule(index=st.sampled_from([0, 1]), size=st.sampled_from([0, 0, 2 * GIB, 15 * GIB]))
    def stranger_comes_or_leaves(self, index: int, size: int) -> None:
        self.strange[index] = size

    @precondition(lambda self: self.lost or self.world.now > 100)
    @rule(index=st.sampled_from([0, 1]), is_lost=st.sampled_from([False] * 9 + [True]))
    def gpu_is_lost_or_back(self, index: int, is_lost: bool) -> None:
        self.lost = self.lost | {index} if is_lost else self.lost - {index}
        self.gpus_are_looked_at("all", 0, 0.0)

    # --- people and time

    @rule(model=NAMES, ask=st.sampled_from([StartAsked, StopAsked, RestartAsked, SleepAsked]))
    def person_asks(self, model: str, ask: type[StartAsked | StopAsked | RestartAsked | SleepAsked]) -> None:
        if model not in self.world.fleet.engines:
            return
        if ask in (StartAsked, RestartAsked):  # a person may try again what ran out of memory for good
            self.oom = {key: flags for key, flags in self.oom.items() if key[0] != model}
        self.happen(ask(model=model))
        if ask is StartAsked and model != "never":
            engine = self.world[model]
            is_left = engine.state is not State.FAILED or engine.retry_at <= self.world.now
            assert is_left or engine.spec.closed, "left by a start"

    @rule(seconds=st.sampled_from([0.5, 5, 12, 12, 40, 70, 200, 1000]))
    def time_passes(self, seconds: float) -> None:
        end = self.world.now + seconds
        for _ in range(5000):
            due = self.world.next_wake()
            if due is None or due > end:
                break
            self.world.now = max(self.world.now, due)
            self.world.effects.clear()
            self.happen(Tick())
        else:
            raise AssertionError("is woken for ever")
        self.world.now = end
        self.happen(Tick())

    @rule(
        model=NAMES,
        change=st.sampled_from(
            ["soft", "hard", "remove", "close", "close later", "close and change", "open"]
        ),
        enforce=st.sampled_from(["observe", "restart", "stop"]),
    )
    def config_changes(self, model: str, change: str, enforce: str) -> None:
        specs = []
        for spec in self.specs:
            if spec.name != model:
                specs.append(spec)
            elif change == "soft":
                specs.append(replace(spec, stop_after_s=10.0))
            elif change == "hard":
                specs.append(replace(spec, signature=spec.signature + "x"))
            elif change == "open":
                specs.append(replace(spec, closed="", opens_at=None, closes_at=0.0))
            elif change != "remove":
                closes_at = self.world.now + 50 if change == "close later" else 0.0
                closed = replace(spec, closed="of the hour", opens_at=99.0, closes_at=closes_at)
                changed = spec.signature + "x" if change == "close and change" else spec.signature
                specs.append(replace(closed, signature=changed))
        if change == "remove":  # what it learnt is kept on disk, not here
            self.oom = {key: flags for key, flags in self.oom.items() if key[0] != model}
        else:
            self.specs = tuple(specs)
        policy = replace(POLICY, enforce=enforce)  # type: ignore[arg-type]
        self.happen(ConfigChanged(specs=tuple(specs), gpus=GPUS, policy=policy))

    # --- what always holds

    @invariant()
    def whoever_does_anything_is_among_the_active(self) -> None:
        fleet = self.world.fleet
        if fleet.active is None:
            return
        engines, names = fleet.active
        assert engines is fleet.engines
        assert list(names) == [name for name in engines if name in names]
        for engine in fleet:
            if engine.state is not State.STOPPED or engine.is_wanted:
                assert engine.name in names

    @invariant()
    def nobody_is_lost(self) -> None:
        waiting = {one.request for engine in self.world.fleet for one in engine.waiting}
        leased = {request for engine in self.world.fleet for request in engine.leases}
        assert waiting == self.waiting.keys()
        assert leased == self.leased.keys()

    @invariant()
    def processes_are_where_the_states_say(self) -> None:
        holding = {(engine.name, engine.launch) for engine in self.world.fleet if engine.state in HAS_PROCESS}
        assert holding == self.alive.keys()

    @invariant()
    def budgets_hold(self) -> None:
        fleet = self.world.fleet
        for index, held in held_bytes(fleet, fleet.gpus).items():
            assert held <= fleet.gpus[index].budget_bytes

    @invariant()
    def sleepers_keep_within_main_memory(self) -> None:
        asleep = [each for each in self.world.fleet if each.state in (State.SLEEPING, State.WAKING)]
        assert sum(map(ram_bytes, asleep)) <= HOST_BUDGET

    @invariant()
    def one_start_at_a_time_on_a_gpu(self) -> None:
        starts = [
            index
            for engine in self.world.fleet
            if engine.state in (State.STARTING, State.WAKING)
            for index in engine.gpus
        ]
        assert len(starts) == len(set(starts))

    @invariant()
    def who_could_be_served_is_served(self) -> None:
        for engine in self.world.fleet:
            if engine.state is State.READY and engine.waiting and not engine.yields_to:
                assert len(engine.leases) == engine.spec.max_concurrent
            if engine.yields_to:
                assert engine.yields_to in self.world.fleet.engines
            if engine.waiting:
                assert engine.state is not State.STOPPED, "waits for an engine that nobody starts"

    @invariant()
    def nobody_waits_for_what_is_out_of_reach(self) -> None:
        far = self.world.fleet.engines.get("far")
        if far is not None and far.state is State.BACKOFF:
            assert not far.is_wanted or self.world.now >= far.retry_at

    @invariant()
    def what_the_schedule_closes_neither_runs_nor_will(self) -> None:
        for engine in self.world.fleet:
            if engine.spec.closed:
                assert engine.state not in RUNS_OR_WILL
                assert not engine.is_wanted
                assert not engine.returns

    @invariant()
    def every_wait_has_a_deadline(self) -> None:
        due = self.world.next_wake()
        for engine in self.world.fleet:
            if engine.waiting:
                assert due is not None
                oldest = min(one.since for one in engine.waiting)
                assert due <= oldest + engine.spec.queue_timeout_s

    def teardown(self) -> None:
        """Shutting down ends everything, from wherever the machine got to."""
        self.happen(ShutdownBegan())
        self.time_passes(60)
        for model, launch in sorted(self.alive):
            assert (model, launch) in self.asked_to_end
            self.happen(EngineExited(model=model, launch=launch, reason="ended"))
        self.alive.clear()
        assert not self.waiting
        for engine in self.world.fleet:
            assert engine.state not in HAS_PROCESS | {State.PREPARING, State.QUEUED}


ALWAYS = (
    Supervisor.nobody_is_lost,
    Supervisor.processes_are_where_the_states_say,
    Supervisor.budgets_hold,
    Supervisor.sleepers_keep_within_main_memory,
    Supervisor.one_start_at_a_time_on_a_gpu,
    Supervisor.who_could_be_served_is_served,
    Supervisor.what_the_schedule_closes_neither_runs_nor_will,
    Supervisor.every_wait_has_a_deadline,
)

Supervisor.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSupervisor = Supervisor.TestCase

"""Whatever happens, in whatever order: the promises hold.

A Hypothesis machine plays the world against the core: clients that come and leave, engines that load, crash,
hang or will not die, people who press buttons, files that change, time that passes. It performs effects the
way the runtime does, so an effect for a launch that does not exist fails here too.
"""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from supervisord_llm.core.effects import (
    Admit,
    CancelPrepare,
    Effect,
    Prepare,
    Reject,
    StartEngine,
    StopEngine,
)
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    Event,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    StartAsked,
    StopAsked,
)
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.core.ledger import held_bytes
from supervisord_llm.core.state import HAS_PROCESS, State
from tests.core.world import GIB, World, gpu

SPECS = (
    ModelSpec(name="cpu", stop_after_s=50, restart_tries=2, signature="1"),
    ModelSpec(name="big", pinned=(0,), stop_after_s=100, min_residency_s=5),
    ModelSpec(name="half", pinned=None, grant=10 * GIB, max_concurrent=1),
    ModelSpec(
        name="half2", pinned=(0,), grant=10 * GIB, max_concurrent=1, queue_when_busy=True, queue_size=3
    ),
    ModelSpec(name="pair", pinned=None, gpu_count=2, queue_timeout_s=40),
    ModelSpec(name="kept", pinned=(1,), grant=5 * GIB, keep=True),
    ModelSpec(name="never", pinned=(0,), grant=99 * GIB),
)
GPUS = (gpu(0), gpu(1))
NAMES = st.sampled_from([spec.name for spec in SPECS])


class Supervisor(RuleBasedStateMachine):
    """The world around `step`."""

    open_requests = Bundle("open_requests")

    def __init__(self) -> None:
        super().__init__()
        self.world = World.of(*SPECS, gpus=GPUS, preload=("cpu",))
        self.specs = SPECS
        self.preparing: set[tuple[str, int]] = set()
        self.alive: dict[tuple[str, int], tuple[int, ...]] = {}
        self.asked_to_end: set[tuple[str, int]] = set()
        self.waiting: dict[int, str] = {}
        self.leased: dict[int, str] = {}
        self.perform(self.world.effects)

    def happen(self, *events: Event) -> None:
        self.perform(self.world.happen(*events))

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Prepare(model=model, launch=launch):
                    self.preparing.add((model, launch))
                case CancelPrepare(model=model, launch=launch):
                    self.preparing.remove((model, launch))
                case StartEngine(model=model, launch=launch, gpus=gpus):
                    assert not [other for other in self.alive if other[0] == model], "two engines of a model"
                    for key, held in self.alive.items():
                        starting = self.world[key[0]].state is State.STARTING
                        assert not (starting and set(held) & set(gpus)), "two starts on a GPU"
                    self.alive[model, launch] = gpus
                case StopEngine(model=model, launch=launch, kill=kill):
                    assert (model, launch) in self.alive, "stops what does not run"
                    busy = [request for request, name in self.leased.items() if name == model]
                    if busy and not kill:
                        drained = self.world[model]
                        assert self.world.now >= self.drain_began[model] + drained.spec.drain_timeout_s
                    self.asked_to_end.add((model, launch))
                case Admit(request=request, model=model):
                    assert self.waiting.pop(request) == model
                    assert (model, self.world[model].launch) in self.alive, "admitted to a dead engine"
                    self.leased[request] = model
                case Reject(request=request, model=model, message=message):
                    del self.waiting[request]
                    assert message.strip()
                case _:
                    pass
        self.drain_began = {
            engine.name: engine.since for engine in self.world.fleet if engine.state is State.DRAINING
        }

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

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), outcome=st.sampled_from(["done", "temporary", "hopeless", "progress"]))
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

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def engine_gets_ready(self, data: st.DataObject) -> None:
        model, launch = data.draw(st.sampled_from(sorted(self.alive)))
        self.happen(EngineReady(model=model, launch=launch))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def engine_exits(self, data: st.DataObject) -> None:
        model, launch = data.draw(st.sampled_from(sorted(self.alive)))
        del self.alive[model, launch]
        self.asked_to_end.discard((model, launch))
        self.happen(EngineExited(model=model, launch=launch, reason="exited"))

    @precondition(lambda self: self.asked_to_end)
    @rule(data=st.data())
    def engine_will_not_die(self, data: st.DataObject) -> None:
        model, launch = data.draw(st.sampled_from(sorted(self.asked_to_end)))
        self.happen(EngineStuck(model=model, launch=launch))

    @rule(model=NAMES, ask=st.sampled_from([StartAsked, StopAsked, RestartAsked]))
    def person_asks(self, model: str, ask: type[StartAsked | StopAsked | RestartAsked]) -> None:
        if model in self.world.fleet.engines:
            self.happen(ask(model=model))

    @rule(seconds=st.sampled_from([0.5, 5, 40, 200, 1000]))
    def time_passes(self, seconds: float) -> None:
        self.perform(self.world.pass_time(seconds))

    @rule(model=NAMES, change=st.sampled_from(["soft", "hard", "remove"]))
    def config_changes(self, model: str, change: str) -> None:
        specs = []
        for spec in self.specs:
            if spec.name != model:
                specs.append(spec)
            elif change == "soft":
                specs.append(replace(spec, stop_after_s=10.0))
            elif change == "hard":
                specs.append(replace(spec, signature=spec.signature + "x"))
        self.specs = tuple(specs) if change != "remove" else self.specs
        self.happen(ConfigChanged(specs=tuple(specs), gpus=GPUS))

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
    def who_could_be_served_is_served(self) -> None:
        for engine in self.world.fleet:
            if engine.state is State.READY and engine.waiting:
                assert len(engine.leases) == engine.spec.max_concurrent
            if engine.waiting:
                assert engine.state is not State.STOPPED, "waits for an engine that nobody starts"

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
        self.perform(self.world.pass_time(60))
        for model, launch in sorted(self.alive):
            assert (model, launch) in self.asked_to_end
            self.happen(EngineExited(model=model, launch=launch, reason="ended"))
        self.alive.clear()
        assert not self.waiting
        for engine in self.world.fleet:
            assert engine.state not in HAS_PROCESS | {State.PREPARING, State.QUEUED}


Supervisor.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestSupervisor = Supervisor.TestCase

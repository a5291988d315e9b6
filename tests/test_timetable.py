"""The schedule as the daemon follows it: overrides, jumps of the clock, and a week of two GPUs."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from supervisord_llm.config.model import Config, Model, Paths, Server, Vram
from supervisord_llm.core.calendar import Hours, Schedule, Window, closings, in_force, switches
from supervisord_llm.core.effects import Admit, Effect, Reject
from supervisord_llm.core.events import ConfigChanged, EngineReady, Event
from supervisord_llm.core.fleet import ModelSpec, Policy
from supervisord_llm.core.routes.route import Route
from supervisord_llm.errors import Refused
from supervisord_llm.timetable import LOOK_S, Timetable
from tests.core.day import HOST_RAM_BYTES, Call, Day
from tests.core.simulator import Core, Figures, Simulator
from tests.core.world import GIB, gpu

NEW_YORK = ZoneInfo("America/New_York")
NIGHT = Window(
    name="night",
    hours=Hours(start=time(2), end=time(6)),
    only=("big",),
    preload=("big",),
    drain_s=600.0,
    fallback="any",
)
WORK = Window(
    name="work",
    hours=Hours(start=time(8), end=time(20), days=frozenset(range(5))),
    only=("a", "b"),
    preload=("a", "b"),
)
MODELS = ("a", "b", "big")


def config(*windows: Window, preload: tuple[str, ...] = (), **more: object) -> Config:
    here = Path("/nowhere")
    return Config(
        files=(),
        server=Server(preload=preload),
        paths=Paths(state=here, cache=here, runtime=here),
        auth_required=False,
        clients=(),
        vram=Vram(),
        gpu_budgets={},
        models={name: Model(name=name, source=name, flags={}, env={}) for name in MODELS},
        routes={"any": Route(name="any", members=("a", "big"))},
        schedule=Schedule(zone=NEW_YORK, windows=windows) if windows else None,
        **more,  # type: ignore[arg-type]
    )


@dataclass
class Watch:
    """A timetable, the two clocks that it goes by, and what it said."""

    file: Path
    now: datetime
    steady: float = 1000.0
    told: list[str] = field(default_factory=list)
    changes: int = 0

    def start(self) -> Timetable:
        def changed() -> None:
            self.changes += 1

        return Timetable(self.file, changed, self.told.append, lambda: self.steady, lambda: self.now)

    def pass_time(self, **how_long: float) -> None:
        elapsed = timedelta(**how_long)
        self.now += elapsed
        self.steady += elapsed.total_seconds()


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """A Monday evening."""
    return Watch(tmp_path / "schedule.json", local("2026-06-01 20:00"))


SPECS = tuple(ModelSpec(name=name) for name in MODELS)


def closed(timetable: Timetable) -> set[str]:
    return {spec.name for spec in timetable.closed(SPECS) if spec.closed}


async def test_each_switch_is_told_once_with_what_is_started(watch: Watch) -> None:
    timetable = watch.start()
    timetable.configure(config(NIGHT, WORK, preload=("a",)))
    assert timetable.look() == ("a",)
    assert timetable.look() is None
    watch.pass_time(hours=5, minutes=51)  # 01:51, it drains
    assert timetable.look() == ()
    assert closed(timetable) == {"a", "b"}
    watch.pass_time(minutes=9)
    assert timetable.look() == ("big",)
    watch.pass_time(hours=4)
    assert timetable.look() == ("a",)
    assert closed(timetable) == set()
    watch.pass_time(hours=2)
    assert timetable.look() == ("a", "b")
    assert closed(timetable) == {"big"}
    assert [text.partition(":")[0].partition(" of")[0] for text in watch.told] == [
        "no window",
        'window "night"',
        "no window",
        'window "work"',
    ]
    assert watch.told[1] == (
        'window "night" of the schedule is in force: only big may run, '
        "until 06:00 (America/New_York), then no window"
    )


async def test_the_core_is_told_in_its_own_time(watch: Watch) -> None:
    timetable = watch.start()
    timetable.configure(config(NIGHT, WORK))
    watch.pass_time(hours=5, minutes=55)
    a, _, big = timetable.closed(SPECS)
    assert big.closed == ""
    assert a.closes_at == pytest.approx(watch.steady + 5 * 60)
    assert a.opens_at == pytest.approx(watch.steady + 5 * 60 + 4 * 3600)
    assert a.closed == (
        'window "night" of the schedule begins at 02:00 and does not let it run '
        "until 06:00 (America/New_York)"
    )


@pytest.mark.parametrize("jump_h", [6.5, -10, 24 * 40])
async def test_a_clock_that_jumps_is_noticed_at_the_next_look(watch: Watch, jump_h: float) -> None:
    timetable = watch.start()
    timetable.configure(config(NIGHT, WORK))
    _ = timetable.look()
    watch.now += timedelta(hours=jump_h)
    expected = {6.5: "night", -10: "work", 24 * 40: None}[jump_h]
    assert timetable.look() is not None
    assert timetable.describe()["window"] == expected


async def test_a_suspended_host_finds_when_it_opens_anew(watch: Watch) -> None:
    """The core's clock stands still meanwhile."""
    timetable = watch.start()
    timetable.configure(config(NIGHT, WORK))
    watch.pass_time(hours=7)
    _ = timetable.look()
    watch.now += timedelta(hours=1)
    assert timetable.look() == ()
    assert timetable.closed(SPECS)[0].opens_at == pytest.approx(watch.steady + 2 * 3600)


async def test_what_answers_in_place_of_a_closed_model(watch: Watch) -> None:
    timetable = watch.start()
    timetable.configure(config(NIGHT, WORK))
    assert timetable.fallback("a") is None
    watch.pass_time(hours=7)
    assert timetable.fallback("a") == "any"
    assert timetable.fallback("big") is None
    assert timetable.fallback("unheard of") is None
    watch.pass_time(hours=7)  # it has none
    assert timetable.fallback("big") is None


async def test_a_fallback_that_may_not_run_yet_does_not_stand_in(watch: Watch) -> None:
    """While the night drains, the window before it is in force still."""
    timetable = watch.start()
    eve = Window(name="eve", hours=Hours(start=time(20), end=time(2)), only=("a",))
    timetable.configure(config(eve, replace(NIGHT, fallback="big")))
    watch.pass_time(hours=5, minutes=55)
    assert closed(timetable) == {"a", "b", "big"}
    assert timetable.fallback("a") is None


class TestOverride:
    """By hand."""

    async def test_without_a_time_it_ends_with_the_schedules_own_next_switch(self, watch: Watch) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        _ = timetable.look()
        await timetable.override("work", None)
        assert watch.changes == 1
        assert timetable.look() == ("a", "b")
        found = timetable.describe()
        assert (found["window"], found["until"]) == ("work", "2026-06-02T02:00:00-04:00")
        assert found["override"] is True
        watch.pass_time(hours=6)
        assert timetable.look() == ("big",)
        assert timetable.describe()["override"] is False
        assert not watch.file.exists()

    async def test_no_window_for_a_time(self, watch: Watch) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        watch.pass_time(hours=7)
        await timetable.override(None, 1800.0)
        assert closed(timetable) == set()
        watch.pass_time(minutes=30)
        assert closed(timetable) == {"a", "b"}

    async def test_auto_ends_it(self, watch: Watch) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        await timetable.override("night", 3600.0)
        assert closed(timetable) == {"a", "b"}
        await timetable.override("auto", None)
        assert closed(timetable) == set()
        assert not watch.file.exists()

    async def test_where_there_is_no_switch_it_lasts_until_it_is_ended(self, watch: Watch) -> None:
        timetable = watch.start()
        always = replace(NIGHT, hours=Hours(start=time(0), end=time(0)))
        timetable.configure(config(always))
        await timetable.override(None, None)
        found = timetable.describe()
        assert (found["until"], found["override_until"], found["switches"]) == (None, None, [])
        watch.pass_time(days=300)
        assert closed(timetable) == set()

    async def test_another_run_goes_on_with_it_to_its_end(self, watch: Watch) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        await timetable.override("work", 7200.0)
        watch.pass_time(hours=1)
        again = watch.start()
        again.configure(config(NIGHT, WORK))
        assert again.describe()["window"] == "work"
        watch.pass_time(hours=1)
        assert again.describe()["window"] is None

    async def test_another_run_after_its_end_knows_nothing_of_it(self, watch: Watch) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        await timetable.override("work", 600.0)
        watch.pass_time(hours=1)
        again = watch.start()
        again.configure(config(NIGHT, WORK))
        assert again.describe()["override"] is False
        assert not watch.file.exists()

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "{}", '{"version": 2, "window": null, "until": null}']
        + [json.dumps({"version": 1, "window": "work", "until": until}) for until in ("x", 1e300, [], True)]
        + [json.dumps({"version": 1, "window": window, "until": None}) for window in (1, [], {})],
    )
    async def test_a_file_that_says_nothing_sensible_counts_for_nothing(
        self, watch: Watch, text: str
    ) -> None:
        watch.file.write_text(text)
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        assert timetable.describe()["window"] is None

    @pytest.mark.parametrize(
        ("window", "for_s", "code"),
        [
            ("nihgt", None, "not_found"),
            ("night", 0.0, "invalid_request"),
            ("night", 1e300, "invalid_request"),
            ("night", float("nan"), "invalid_request"),
            ("auto", 60.0, "invalid_request"),
        ],
    )
    async def test_what_cannot_be(self, watch: Watch, window: str, for_s: float | None, code: str) -> None:
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        with pytest.raises(Refused) as refused:
            await timetable.override(window, for_s)
        assert refused.value.code == code
        assert refused.value.message.startswith("cannot")
        assert watch.changes == 0

    async def test_a_state_directory_that_cannot_be_written_does_not_hinder_it(self, watch: Watch) -> None:
        (watch.file.parent / "file").write_text("")
        watch.file = watch.file.parent / "file" / "schedule.json"
        timetable = watch.start()
        timetable.configure(config(NIGHT, WORK))
        await timetable.override("night", 3600.0)
        assert closed(timetable) == {"a", "b"}


async def test_without_a_schedule_every_model_may_run(watch: Watch) -> None:
    timetable = watch.start()
    timetable.configure(config(preload=("any", "b")))
    assert timetable.look() == ("a", "big", "b")
    assert timetable.look() is None
    assert timetable.closed(SPECS) == SPECS
    assert timetable.describe()["timezone"] is None
    assert watch.told == []


# --- a week ---------------------------------------------------------------------------------------

DAY_S = 24 * 3600.0
EVERY_S = 300.0


def household(seed: int, days: int) -> Day:
    """Two models of one card each and one of both, asked for day and night, whatever the schedule says."""
    rng = random.Random(seed)
    specs = tuple(
        ModelSpec(
            name=name,
            pinned=None,
            gpu_count=cards,
            grant=18 * GIB,
            queue_timeout_s=1800,
            stall_timeout_s=300,
            drain_timeout_s=90,
            stop_after_s=None,
        )
        for name, cards in (("a", 1), ("b", 1), ("big", 2))
    )
    calls: list[Call] = []
    while len(calls) < 100 * days:
        at, took_s = rng.uniform(0, days * DAY_S), rng.uniform(2, 80)
        model = rng.choice(MODELS)
        calls.append(Call(at=at, model=model, client="x", priority=0, took_s=took_s))
    return Day(
        seed=seed,
        specs=specs,
        gpus=(gpu(0), gpu(1)),
        calls=tuple(sorted(calls, key=lambda call: call.at)),
        start_s={"a": 40, "b": 50, "big": 150},
        wake_s={},
    )


class Look:
    """The daemon looks at the clock."""


class Week(Simulator):
    """The core, told of switches as the daemon tells it; and who may run when, by the wall clock alone."""

    def __init__(self, day: Day, schedule: Config, began: datetime, file: Path) -> None:
        self.core = Core(day)
        super().__init__(day, self.core)
        self.schedule, self.began = schedule.schedule, began
        self.told: list[str] = []
        self.timetable = Timetable(file, lambda: None, self.told.append, lambda: self.now, lambda: self.wall)
        self.timetable.configure(schedule)
        self.ends = max(call.at for call in day.calls) + 3600
        self.looked: Counter[str] = Counter()

    @property
    def wall(self) -> datetime:
        return self.began + timedelta(seconds=self.now)

    def run(self) -> Figures:
        self.later(0.0, Look())  # type: ignore[arg-type]
        return super().run()

    def happen(self, event: Event) -> None:
        if isinstance(event, EngineReady):
            process = self.processes.get(event.model)
            if process is None or process.launch != event.launch or process.state == "ending":
                return  # it was stopped while it started
        if not isinstance(event, Look):
            super().happen(event)
            return
        starts = self.timetable.look()
        if starts is not None:
            specs = self.timetable.closed(self.day.specs)
            preload = tuple(dict.fromkeys((*starts, *self.core.fleet.preload)))
            policy = Policy(host_budget_bytes=HOST_RAM_BYTES)
            super().happen(ConfigChanged(specs=specs, gpus=self.day.gpus, policy=policy, preload=preload))
        if self.now % EVERY_S == 0:
            self.see_who_runs()
        if self.now < self.ends:
            self.later(LOOK_S, event)

    def closed(self, model: str, at: datetime) -> bool:
        assert self.schedule is not None
        window, coming = in_force(self.schedule, at), tuple(switches(self.schedule, at))
        return model in closings((model,), window, coming, at)

    def see_who_runs(self) -> None:
        """Some minutes into a window what it preloads is up and nothing else is there."""
        assert self.schedule is not None
        window = in_force(self.schedule, self.wall)
        if window is None or in_force(self.schedule, self.wall - timedelta(seconds=EVERY_S)) != window:
            return
        self.looked[window.name] += 1
        assert set(self.processes) == set(window.preload)
        assert {process.state for process in self.processes.values()} == {"ready"}

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Admit):
            assert not self.closed(effect.model, self.wall), "admitted out of schedule"
        if isinstance(effect, Reject):
            assert effect.code == "out_of_schedule"
            assert self.closed(effect.model, self.wall), "refused for a schedule that lets it run"
            assert effect.retry_after_s is not None
            opens = self.wall + timedelta(seconds=effect.retry_after_s)
            assert not self.closed(effect.model, opens), "it does not open when it was said to"
        super().perform(effect)


@pytest.mark.parametrize(
    ("began", "night_h"),
    [("2026-03-05 00:00", 6 * 4 + 3), ("2026-10-29 00:00", 7 * 4)],
    ids=["the clock goes forward", "the clock goes back"],
)
def test_a_week_of_day_and_night_loses_no_request_and_keeps_the_budgets(
    began: str, night_h: int, tmp_path: Path
) -> None:
    """The simulator fails where a budget is exceeded, two start on a card, or one in use is ended."""

    async def live() -> Week:
        week = Week(household(7, days=7), config(NIGHT, WORK), local(began), tmp_path / "schedule.json")
        week.run()
        return week

    week = asyncio.run(live())
    figures = week.figures
    assert figures.served + figures.refused["out_of_schedule"] == len(week.day.calls) == 700
    assert figures.refused.keys() == {"out_of_schedule"}
    assert figures.served > 400
    begun = Counter(text.partition(" of the schedule")[0] for text in week.told)
    assert begun == {'window "night"': 7, 'window "work"': 5, "no window": 13}
    assert week.looked == {"night": night_h * 12 - 7, "work": 5 * (12 * 12 - 1)}

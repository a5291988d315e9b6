"""Hours of the week, against a clock that is read minute by minute through both changes of it."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_llm.core.calendar import (
    Closing,
    Hours,
    Override,
    Schedule,
    Window,
    closings,
    in_force,
    is_on,
    switches,
)

NEW_YORK = ZoneInfo("America/New_York")
BERLIN = ZoneInfo("Europe/Berlin")
MON, TUE, SAT, SUN = 0, 1, 5, 6
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)

CHANGES = {
    ("America/New_York", date(2026, 3, 8)): "02:00 to 03:00",
    ("America/New_York", date(2026, 11, 1)): "02:00 to 01:00",
    ("Europe/Berlin", date(2026, 3, 29)): "02:00 to 03:00",
    ("Europe/Berlin", date(2026, 10, 25)): "03:00 to 02:00",
    ("Australia/Lord_Howe", date(2026, 4, 5)): "02:00 to 01:30",
    ("Australia/Lord_Howe", date(2026, 10, 4)): "02:00 to 02:30",
    ("America/Havana", date(2026, 11, 1)): "01:00 to 00:00",
    ("Africa/Cairo", date(2026, 4, 24)): "00:00 to 01:00",
    ("Atlantic/Azores", date(2026, 10, 25)): "01:00 to 00:00",
    ("Pacific/Apia", date(2011, 12, 30)): "there is no such day",
    ("Asia/Kolkata", date(2026, 3, 29)): "nothing changes",
}
"""The clock's changes, by zone and local date."""


def at(text: str) -> time:
    return time.fromisoformat(text)


def hours(start: str, end: str, *days: int) -> Hours:
    return Hours(start=at(start), end=at(end), **({"days": frozenset(days)} if days else {}))


def window(name: str, start: str, end: str, *days: int, **more: object) -> Window:
    return Window(name=name, hours=hours(start, end, *days), **more)  # type: ignore[arg-type]


def utc(zone: tzinfo, text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


def closed_at(schedule: Schedule, models: Iterable[str], now: datetime) -> Mapping[str, Closing]:
    return closings(models, in_force(schedule, now), tuple(switches(schedule, now)), now)


def shown(schedule: Schedule, now: datetime, count: int) -> list[tuple[str, str | None]]:
    """The next switches as the local clock shows them."""
    return [
        (f"{switch.at.astimezone(schedule.zone):%a %H:%M %z}", switch.window and switch.window.name)
        for switch in islice(switches(schedule, now), count)
    ]


# --- hours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "local", "on"),
    [
        (hours("02:00", "06:00"), "2026-06-01 01:59:59", False),
        (hours("02:00", "06:00"), "2026-06-01 02:00", True),
        (hours("02:00", "06:00"), "2026-06-01 05:59:59", True),
        (hours("02:00", "06:00"), "2026-06-01 06:00", False),
        (hours("22:00", "06:00"), "2026-06-01 23:00", True),
        (hours("22:00", "06:00"), "2026-06-02 05:00", True),
        (hours("22:00", "06:00"), "2026-06-02 12:00", False),
        # The day is the one on which it begins: 2026-06-01 is a Monday.
        (hours("22:00", "06:00", MON), "2026-06-01 05:00", False),
        (hours("22:00", "06:00", MON), "2026-06-01 22:00", True),
        (hours("22:00", "06:00", MON), "2026-06-02 05:59", True),
        (hours("22:00", "06:00", MON), "2026-06-02 22:00", False),
        (hours("22:00", "06:00", SUN), "2026-06-01 05:00", True),
        # A whole day, and a day that ends at midnight.
        (hours("00:00", "00:00", SAT), "2026-06-05 23:59", False),
        (hours("00:00", "00:00", SAT), "2026-06-06 00:00", True),
        (hours("00:00", "00:00", SAT), "2026-06-06 23:59", True),
        (hours("00:00", "00:00", SAT), "2026-06-07 00:00", False),
        (hours("18:00", "00:00", SAT), "2026-06-07 00:00", False),
    ],
)
def test_hours_past_midnight_and_days(span: Hours, local: str, on: bool) -> None:
    assert is_on(span, datetime.fromisoformat(local).replace(tzinfo=BERLIN)) is on
    assert is_on(span, datetime.fromisoformat(local).replace(tzinfo=UTC)) is on


@pytest.mark.parametrize(
    ("zone", "span", "instant", "on"),
    [
        # New York, 2026-03-08: 02:00 becomes 03:00.
        (NEW_YORK, hours("02:30", "06:00"), "2026-03-08 06:59", False),
        (NEW_YORK, hours("02:30", "06:00"), "2026-03-08 07:00", True),  # 03:00, the first after the gap
        (NEW_YORK, hours("01:00", "02:30"), "2026-03-08 06:59", True),
        (NEW_YORK, hours("01:00", "02:30"), "2026-03-08 07:00", False),
        (NEW_YORK, hours("02:10", "02:50"), "2026-03-08 07:00", False),  # not on that day
        (NEW_YORK, hours("02:10", "02:50"), "2026-03-09 06:10", True),
        # 2026-11-01: 02:00 becomes 01:00.
        (NEW_YORK, hours("01:15", "01:45"), "2026-11-01 05:15", True),
        (NEW_YORK, hours("01:15", "01:45"), "2026-11-01 06:15", False),  # the second pass
        (NEW_YORK, hours("01:00", "03:00"), "2026-11-01 05:00", True),
        (NEW_YORK, hours("01:00", "03:00"), "2026-11-01 06:30", True),
        (NEW_YORK, hours("01:00", "03:00"), "2026-11-01 08:00", False),
        # Lord Howe goes forward, and back, by half an hour.
        (ZoneInfo("Australia/Lord_Howe"), hours("02:15", "04:00"), "2026-10-03 15:29", False),
        (ZoneInfo("Australia/Lord_Howe"), hours("02:15", "04:00"), "2026-10-03 15:30", True),
        (ZoneInfo("Australia/Lord_Howe"), hours("01:45", "01:50"), "2026-04-04 14:47", True),
        (ZoneInfo("Australia/Lord_Howe"), hours("01:45", "01:50"), "2026-04-04 15:17", False),
    ],
)
def test_a_time_that_is_skipped_or_doubled(zone: tzinfo, span: Hours, instant: str, on: bool) -> None:
    now = datetime.fromisoformat(instant).replace(tzinfo=UTC)
    assert is_on(span, now.astimezone(zone)) is on


# --- windows ---------------------------------------------------------------------------------------


def test_the_first_of_the_list_counts_and_windows_that_touch_leave_no_gap() -> None:
    schedule = Schedule(
        zone=BERLIN,
        windows=(window("a", "10:00", "12:00"), window("b", "08:00", "11:00"), window("c", "12:00", "13:00")),
    )
    monday = utc(BERLIN, "2026-06-01 00:00")
    assert shown(schedule, monday, 5) == [
        ("Mon 08:00 +0200", "b"),
        ("Mon 10:00 +0200", "a"),
        ("Mon 12:00 +0200", "c"),
        ("Mon 13:00 +0200", None),
        ("Tue 08:00 +0200", "b"),
    ]


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (
            "2026-03-28",
            [("Sun 03:00 +0200", "night"), ("Sun 06:00 +0200", None), ("Mon 02:30 +0200", "night")],
        ),
        (
            "2026-10-24",
            [("Sun 02:30 +0200", "night"), ("Sun 06:00 +0100", None), ("Mon 02:30 +0100", "night")],
        ),
    ],
)
def test_the_next_switches_over_a_change_of_the_clock(
    day: str, expected: list[tuple[str, str | None]]
) -> None:
    schedule = Schedule(zone=BERLIN, windows=(window("night", "02:30", "06:00"),))
    assert shown(schedule, utc(BERLIN, f"{day} 12:00"), 3) == expected


def test_what_never_changes_has_no_switch() -> None:
    assert list(switches(Schedule(zone=BERLIN), utc(BERLIN, "2026-06-01 00:00"))) == []
    always = Schedule(zone=BERLIN, windows=(window("always", "00:00", "00:00"),))
    assert list(switches(always, utc(BERLIN, "2026-06-01 00:00"))) == []
    assert in_force(always, utc(BERLIN, "2026-06-01 00:00")) == always.windows[0]


def test_a_week_that_a_gap_swallows_is_looked_past() -> None:
    """Sunday 02:10 to 02:50 is not on when the clock goes forward: a week later it is."""
    schedule = Schedule(zone=BERLIN, windows=(window("brief", "02:10", "02:50", SUN),))
    assert shown(schedule, utc(BERLIN, "2026-03-23 00:00"), 1) == [("Sun 02:10 +0200", "brief")]
    assert next(switches(schedule, utc(BERLIN, "2026-03-23 00:00"))).at == utc(BERLIN, "2026-04-05 02:10")


# --- what is closed ---------------------------------------------------------------------------------


NIGHT = window("night", "02:00", "06:00", only=("big",), drain_s=600.0)
DAWN = window("dawn", "06:00", "07:00", only=("big", "small"))
HOUSE = Schedule(zone=BERLIN, windows=(NIGHT, DAWN))


@pytest.mark.parametrize(
    ("local", "closed"),
    [
        ("01:49", {}),
        ("01:50", {"small": ("night", "02:00", "06:00"), "other": ("night", "02:00", "07:00")}),
        ("02:00", {"small": ("night", None, "06:00"), "other": ("night", None, "07:00")}),
        ("06:00", {"other": ("dawn", None, "07:00")}),
        ("07:00", {}),
    ],
)
def test_what_may_not_run_why_and_until_when(
    local: str, closed: dict[str, tuple[str, str | None, str]]
) -> None:
    def clock(instant: datetime | None) -> str | None:
        return instant and f"{instant.astimezone(BERLIN):%H:%M}"

    found = closed_at(HOUSE, ("big", "small", "other"), utc(BERLIN, f"2026-06-01 {local}"))
    assert {
        name: (closing.window.name, clock(closing.begins), clock(closing.opens))
        for name, closing in found.items()
    } == closed


def test_it_does_not_open_where_the_next_window_drains_it_already() -> None:
    brief = Schedule(
        zone=BERLIN,
        windows=(
            window("a", "10:00", "11:00", only=("x",)),
            window("b", "11:05", "12:00", only=("x",), drain_s=600.0),
        ),
    )
    (closing,) = closed_at(brief, ("y",), utc(BERLIN, "2026-06-01 10:30")).values()
    assert closing.opens == utc(BERLIN, "2026-06-01 12:00")


def test_what_no_window_ever_allows_opens_never() -> None:
    always = Schedule(zone=BERLIN, windows=(window("always", "00:00", "00:00", only=()),))
    assert closed_at(always, ("y",), utc(BERLIN, "2026-06-01 10:30"))["y"].opens is None


# --- by hand ---------------------------------------------------------------------------------------


def overridden(to: Window | None, until: str | None) -> Schedule:
    end = None if until is None else utc(BERLIN, f"2026-06-01 {until}")
    return Schedule(zone=BERLIN, windows=HOUSE.windows, override=Override(window=to, until=end))


@pytest.mark.parametrize(
    ("schedule", "now", "window", "coming"),
    [
        (
            overridden(None, "03:00"),
            "02:30",
            None,
            [("Mon 03:00 +0200", "night"), ("Mon 06:00 +0200", "dawn")],
        ),
        (overridden(NIGHT, "06:30"), "02:30", "night", [("Mon 06:30 +0200", "dawn")]),
        (overridden(NIGHT, "05:00"), "02:30", "night", [("Mon 06:00 +0200", "dawn")]),  # no switch at its end
        (overridden(None, "03:00"), "03:00", "night", [("Mon 06:00 +0200", "dawn")]),
        (overridden(NIGHT, None), "12:00", "night", []),
    ],
)
def test_an_override_counts_until_it_ends(
    schedule: Schedule, now: str, window: str | None, coming: list[tuple[str, str | None]]
) -> None:
    instant = utc(BERLIN, f"2026-06-01 {now}")
    found = in_force(schedule, instant)
    assert (found and found.name) == window
    assert shown(schedule, instant, len(coming) or 1) == coming


# --- against a clock that is read minute by minute ----------------------------------------------


@cache
def clock(zone: str, changes: date) -> tuple[list[datetime], list[datetime]]:
    """Every minute of twelve days: the instant, and the latest that the local clock has shown by then."""
    begin = datetime(changes.year, changes.month, changes.day, tzinfo=UTC) - 6 * DAY
    instants = [begin + MINUTE * n for n in range(12 * 24 * 60)]
    latest = datetime.min
    said = []
    for instant in instants:
        latest = max(latest, instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None))
        said.append(latest)
    return instants, said


def spans(each: Hours, said: list[datetime]) -> list[tuple[int, int]]:
    """From which minute on it is on, and to which, begun on any day that the clock has shown."""
    found = []
    day = said[0].date() + DAY
    while day <= said[-1].date():
        if day.weekday() in each.days:
            end = day + DAY if each.end <= each.start else day
            found.append((
                bisect_left(said, datetime.combine(day, each.start)),
                bisect_left(said, datetime.combine(end, each.end)),
            ))  # fmt: skip
        day += DAY
    return found


QUARTERS = st.integers(0, 5 * 4).map(lambda n: time(n // 4, n % 4 * 15))
TIMES = st.one_of(QUARTERS, st.times().map(lambda each: time(each.hour, each.minute)))
HOURS = st.builds(
    Hours,
    start=TIMES,
    end=TIMES,
    days=st.one_of(st.just(frozenset(range(7))), st.frozensets(st.integers(0, 6))),
)


@settings(deadline=None, max_examples=60)
@given(where=st.sampled_from(sorted(CHANGES)), each=st.lists(HOURS, min_size=1, max_size=3))
def test_it_is_as_the_clock_shows_minute_by_minute(where: tuple[str, date], each: list[Hours]) -> None:
    instants, said = clock(*where)
    windows = tuple(Window(name=str(n), hours=one) for n, one in enumerate(each))
    schedule = Schedule(zone=ZoneInfo(where[0]), windows=windows)
    on = [spans(one, said) for one in each]
    first, last = 2 * 24 * 60, 10 * 24 * 60
    truth = [
        next((n for n, those in enumerate(on) if any(a <= minute < b for a, b in those)), None)
        for minute in range(first, last)
    ]
    changes = [minute + 1 for minute, (one, other) in enumerate(pairwise(truth)) if one != other]
    found = [
        (switch.at, switch.window and int(switch.window.name))
        for switch in switches(schedule, instants[first])
        if switch.at < instants[last]
    ]
    assert found == [(instants[first + minute], truth[minute]) for minute in changes]
    for minute in {0, *changes, *(change - 1 for change in changes)}:
        now = in_force(schedule, instants[first + minute])
        assert (now and int(now.name)) == truth[minute]
        zoned = instants[first + minute].astimezone(schedule.zone)
        assert in_force(schedule, zoned) == now
        if minute < len(truth) - 1:
            following = next(switches(schedule, zoned), None)
            nearest = next((change for change in changes if change > minute), None)
            if nearest is not None:
                assert following is not None
                assert following.at == instants[first + nearest]


@pytest.mark.parametrize("where", sorted(CHANGES), ids=lambda where: where[0])
def test_a_night_is_on_once_a_day_whatever_the_clock_does(where: tuple[str, date]) -> None:
    instants, _ = clock(*where)
    schedule = Schedule(zone=ZoneInfo(where[0]), windows=(window("night", "00:30", "05:00"),))
    begun = [
        switch for switch in switches(schedule, instants[0]) if switch.window and switch.at < instants[-1]
    ]
    days = [switch.at.astimezone(schedule.zone).date() for switch in begun]
    there = {instant.astimezone(schedule.zone).date() for instant in instants}
    assert days == sorted(day for day in there if days[0] <= day <= days[-1])
    assert len(days) >= 11

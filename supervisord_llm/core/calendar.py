"""Hours of the week: which window is on, and when that changes. The one place that knows of wall clocks.

Instants are aware datetimes, given by the caller; what a window says is local time in the schedule's zone.
A local time is one instant of its day, so every window begins once and ends once:

- a time that the clock skips (in spring) is the first instant after the gap: a window that begins in the gap
  begins there, one that ends in it ends there, and one that lies wholly in it is not on that day;
- a time that the clock shows twice (in autumn) is the first of the two: "01:15" to "01:45" is on in the first
  pass alone, and "01:00" to "03:00" is on for three hours, without a break.

Nothing here counts in local time: instants are compared in UTC, where no hour is missing or doubled.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

EVERY_DAY = frozenset(range(7))
_DAY = timedelta(days=1)
_HORIZON = 21 * _DAY
"""Hours come again each week, and a week later where a gap has swallowed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """From `start` to before `end`, local time, on days of the week on which it starts (0 is Monday).

    With `end` at or before `start` it goes past midnight, into the day after.
    """

    start: time
    end: time
    days: frozenset[int] = EVERY_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """[schedule] windows: hours in which only some models may run."""

    name: str
    hours: Hours
    only: tuple[str, ...] | None = None
    """Models that may run; None: all of them."""
    preload: tuple[str, ...] = ()
    """Models to start when it begins, in this order."""
    drain_s: float = 0.0
    """How long before it begins the others take no new requests."""
    fallback: str | None = None
    """The model or route that answers in place of one that may not run."""

    def allows(self, model: str) -> bool:
        return self.only is None or model in self.only


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What an operator put in force by hand, in place of what the hours say, until it ends."""

    window: Window | None
    """None: no window; every model may run."""
    until: datetime | None = None
    """None: until it is ended by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """[schedule]: the first window that is on counts; outside of all, every model may run."""

    zone: tzinfo
    windows: tuple[Window, ...] = ()
    override: Override | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """From `at` (UTC) on another window is in force than before; None: no window."""

    at: datetime
    window: Window | None

    def allows(self, model: str) -> bool:
        return self.window is None or self.window.allows(model)

    @property
    def drains_from(self) -> datetime:
        """From then on, those that it will not allow take no new requests."""
        return self.at - timedelta(seconds=0.0 if self.window is None else self.window.drain_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Why a model takes no new requests: `window` does not let it run. Instants in UTC."""

    window: Window
    begins: datetime | None
    """When that window will be in force, while it drains; None: it is."""
    opens: datetime | None
    """When the model may run again; None: not within the next weeks."""


def in_force(schedule: Schedule, now: datetime) -> Window | None:
    """The window that counts at an instant; None: no window does."""
    override = schedule.override
    if override is not None and not is_over(override, now):
        return override.window
    local = now.astimezone(schedule.zone)
    return next((window for window in schedule.windows if is_on(window.hours, local)), None)


def switches(schedule: Schedule, now: datetime) -> Iterator[Switch]:
    """What comes after an instant, in its order, as far as about three weeks ahead."""
    window, override = in_force(schedule, now), schedule.override
    begin, instants = now.astimezone(UTC), set[datetime]()
    if override is not None and not is_over(override, now):
        if override.until is None:
            return
        begin = override.until.astimezone(UTC)
        instants.add(begin)
    first = begin.astimezone(schedule.zone).date() - _DAY
    spans = [
        (each, tuple(_spans(each.hours, schedule.zone, first, days=_HORIZON.days + 3)))
        for each in schedule.windows
    ]
    ends = begin + _HORIZON  # whoever is on then has begun on a day that was looked at
    instants |= {at for _, those in spans for span in those for at in span if begin < at < ends}
    for at in sorted(instants):
        following = next((each for each, those in spans if any(a <= at < b for a, b in those)), None)
        if following != window:
            yield Switch(at=at, window=following)
            window = following


def closings(
    models: Iterable[str], window: Window | None, coming: Sequence[Switch], now: datetime
) -> Mapping[str, Closing]:
    """Those of `models` that take no new requests at an instant, and why.

    The window in force closes what it does not let run; that of the next switch does so `drain_s` before.
    """
    drains = coming[0] if coming and now >= coming[0].drains_from else None
    found = {}
    for model in models:
        if window is not None and not window.allows(model):
            found[model] = Closing(window=window, begins=None, opens=_opens(model, coming))
        elif drains is not None and drains.window is not None and not drains.window.allows(model):
            found[model] = Closing(window=drains.window, begins=drains.at, opens=_opens(model, coming))
    return found


def _opens(model: str, coming: Sequence[Switch]) -> datetime | None:
    """The first switch that lets it run, unless the next one drains it already."""
    for place, switch in enumerate(coming):
        following = coming[place + 1] if place + 1 < len(coming) else None
        if switch.allows(model) and (
            following is None or following.allows(model) or switch.at < following.drains_from
        ):
            return switch.at
    return None


def is_over(override: Override, now: datetime) -> bool:
    """Whether the hours count again."""
    return override.until is not None and override.until.astimezone(UTC) <= now.astimezone(UTC)


def is_on(hours: Hours, local: datetime) -> bool:
    """Whether `local`, an aware datetime in the zone that the hours are meant in, lies within them."""
    zone = local.tzinfo
    assert zone is not None, "an aware datetime"
    now = local.astimezone(UTC)
    return any(begin <= now < end for begin, end in _spans(hours, zone, local.date() - _DAY, days=3))


def _spans(hours: Hours, zone: tzinfo, first: date, *, days: int) -> Iterator[tuple[datetime, datetime]]:
    """From when to when the hours are on, where they start on one of `days` days from `first` on; in UTC."""
    past_midnight = _DAY if hours.end <= hours.start else timedelta()
    for day in (first + _DAY * n for n in range(days)):
        if day.weekday() in hours.days:
            yield _instant(day, hours.start, zone), _instant(day + past_midnight, hours.end, zone)


def _instant(day: date, at: time, zone: tzinfo) -> datetime:
    """The instant (UTC) at which the clock first shows `at` on `day`, or first shows something later."""
    local = datetime.combine(day, at, zone)
    instant = local.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):
        return instant
    return _end_of_gap(local.replace(fold=1).astimezone(UTC), instant, zone)


def _end_of_gap(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The instant of the change of offset between two instants (UTC), of which the first lies before it."""
    old = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after

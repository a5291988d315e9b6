"""What the schedule decides, as sentences: why a model may not run, and each switch."""

from datetime import datetime, timedelta, tzinfo

from supervisord_llm.core.calendar import Closing, Schedule, Switch, Window

SHOWN = 3
"""How many of the switches to come are told."""


def clock(at: datetime, zone: tzinfo, now: datetime) -> str:
    """ "06:00", "Mon 06:00" or "2026-10-25 06:00": as people near `now` say it in the zone."""
    local, today = at.astimezone(zone), now.astimezone(zone)
    if local.date() == today.date():
        return f"{local:%H:%M}"
    near = timedelta() < local.date() - today.date() < timedelta(days=7)
    return f"{local:%a %H:%M}" if near else f"{local:%Y-%m-%d %H:%M}"


def closed(closing: Closing, schedule: Schedule, now: datetime) -> str:
    """Why a model does not run, without its name."""
    zone, window, override = schedule.zone, closing.window.name, schedule.override
    if closing.begins is not None:
        does = f"begins at {clock(closing.begins, zone, now)} and does not let it run"
    elif override is not None and override.window is closing.window:
        does = "was put in force by hand and does not let it run"
    else:
        does = "does not let it run"
    until = f" until {clock(closing.opens, zone, now)} ({zone})" if closing.opens is not None else ""
    return f'window "{window}" of the schedule {does}{until}'


def stands(schedule: Schedule, window: Window | None, following: Switch | None, now: datetime) -> str:
    """What is in force, who may run, and what comes after."""
    if window is None:
        what = "no window of the schedule is in force: every model may run"
    elif window.only is None:
        what = f'window "{window.name}" of the schedule is in force: every model may run'
    else:
        who = f"only {', '.join(window.only)} may run" if window.only else "no model may run"
        what = f'window "{window.name}" of the schedule is in force: {who}'
    by_hand = ", by hand" if schedule.override is not None else ""
    if following is None:
        return f"{what}{by_hand}"
    until = (
        f"until {clock(following.at, schedule.zone, now)} ({schedule.zone}), then {named(following.window)}"
    )
    return f"{what}{by_hand}, {until}"


def named(window: Window | None) -> str:
    return "no window" if window is None else f'window "{window.name}"'

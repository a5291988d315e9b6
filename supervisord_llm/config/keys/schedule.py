"""The keys of [schedule], and how hours of the week are written."""

import re
import zoneinfo
from datetime import time

from supervisord_llm.config.kinds import Key, ListOf, OneOf, Table, Unreadable, Value
from supervisord_llm.config.problem import did_you_mean
from supervisord_llm.config.values import DURATION, names, text

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SPANS = {"daily": range(7), "weekdays": range(5), "weekends": range(5, 7)}
COMMANDS = ("auto", "none")
"""What the command line says in place of a window's name."""

_TIME = r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _read_time(raw: object) -> time:
    found = re.fullmatch(_TIME, raw) if isinstance(raw, str) else None
    if found is None:
        raise Unreadable
    return time(int(found[1]), int(found[2]), int(found[3] or 0))


def _read_end(raw: object) -> time:
    return time(0) if raw == "24:00" else _read_time(raw)


def _read_day(raw: object) -> int:
    if not isinstance(raw, str) or raw not in DAYS:
        raise Unreadable("", did_you_mean(raw, DAYS) if isinstance(raw, str) else "")
    return DAYS.index(raw)


def _read_span(raw: object) -> frozenset[int]:
    if not isinstance(raw, str) or raw not in SPANS:
        raise Unreadable("", did_you_mean(raw, SPANS) if isinstance(raw, str) else "")
    return frozenset(SPANS[raw])


def _read_zone(raw: object) -> zoneinfo.ZoneInfo:
    if not isinstance(raw, str) or not raw:
        raise Unreadable
    try:
        return zoneinfo.ZoneInfo(raw)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        by_lower = {name.lower(): name for name in known}
        near = by_lower.get(raw.lower())
        hint = f'did you mean "{near}"?' if near else did_you_mean(raw, known)
        raise Unreadable("no such time zone is known here", hint) from None


def _read_name(raw: str) -> str:
    if raw in COMMANDS:
        raise Unreadable(f"`llm-supervisor schedule {raw}` means something else", "use another name")
    return raw


ZONE = Value(
    accepts='a time zone such as "Europe/Berlin", "America/New_York" or "UTC"',
    schema={"type": "string", "minLength": 1},
    read=_read_zone,
)
START = Value(
    accepts='a time of day such as "02:00"',
    schema={"type": "string", "pattern": f"^{_TIME}$"},
    read=_read_time,
)
END = Value(
    accepts='a time of day such as "06:00", or "24:00"',
    schema={"type": "string", "pattern": f"^({_TIME}|24:00)$"},
    read=_read_end,
)
ON_DAYS = OneOf((
    Value(accepts='"daily", "weekdays", "weekends"', schema={"enum": list(SPANS)}, read=_read_span),
    ListOf(Value(accepts='"mon", "tue" … or "sun"', schema={"enum": list(DAYS)}, read=_read_day)),
))  # fmt: skip
WINDOW_NAME = names('a name of letters, digits and ". _ -"', _NAME, _read_name, refused=COMMANDS)
"""Reads a string value, though it is no key."""
RUNNABLE = text("the name or an alias of a model, or of a route, which stands for its members")

WINDOW = Table(
    doc="Hours in which only some models may run. The first of the list that is on counts.",
    keys=(
        Key(name="name", kind=WINDOW_NAME, required=True, doc="What it is called in logs and orders."),
        Key(name="from", kind=START, required=True, doc="When it begins, local time."),
        Key(
            name="to",
            kind=END,
            required=True,
            doc='When it ends; not after `from` is on the next day, and `"24:00"` is the end of the day.',
        ),
        Key(
            name="days",
            kind=ON_DAYS,
            default="daily",
            doc="The days of the week on which it begins.",
        ),
        Key(
            name="only",
            kind=ListOf(RUNNABLE),
            doc="What may run; requests for other models get 503 `out_of_schedule`, and their engines stop.",
            default_doc="everything",
        ),
        Key(
            name="preload",
            kind=ListOf(RUNNABLE),
            default=[],
            doc="What is started when it begins, one after the other, once there is room.",
        ),
        Key(
            name="drain",
            kind=DURATION,
            default="0s",
            doc="How long before it begins those that it will not let run take no new requests.",
        ),
        Key(
            name="fallback",
            kind=text("the name or an alias of a model or route"),
            doc="What answers requests for models that may not run.",
            default_doc="none: 503",
        ),
    ),
)
SCHEDULE = Table(
    doc="Hours of the week in which only some models may run. Outside of all windows every model may.",
    keys=(
        Key(
            name="timezone", kind=ZONE, doc="Where `from` and `to` are local time.", default_doc="the host's"
        ),
        Key(name="windows", kind=ListOf(WINDOW), default=[], doc="The windows; see below."),
    ),
)

"""Whether a rule of a route applies to a request."""

from fnmatch import fnmatchcase

from supervisord_llm.core.calendar import EVERY_DAY, Hours, is_on
from supervisord_llm.core.routes.route import Ask, Rule

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def applies(rule: Rule, ask: Ask) -> str | None:
    """Why it does, in a few words of the configuration's; None: it does not."""
    if rule.tokens_over is not None and ask.tokens <= rule.tokens_over:
        return None
    if rule.tools is not None and rule.tools != ask.tools:
        return None
    if rule.images is not None and rule.images != ask.images:
        return None
    if rule.clients and not _fits(ask.client, rule.clients):
        return None
    if rule.endpoints and not _fits(ask.endpoint, rule.endpoints):
        return None
    for name, pattern in rule.headers.items():
        value = ask.headers.get(name)
        if value is None or not fnmatchcase(value, pattern):
            return None
    if rule.hours is not None and (ask.local is None or not is_on(rule.hours, ask.local)):
        return None
    return _told(rule, ask)


def _fits(word: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(word, pattern) for pattern in patterns)


def _told(rule: Rule, ask: Ask) -> str:
    parts: list[str] = []
    if rule.tokens_over is not None:
        about = "" if ask.is_exact else "about "
        parts.append(f"{about}{ask.tokens} tokens, over {rule.tokens_over}")
    if rule.clients:
        parts.append(f"client {ask.client}")
    parts.extend(f"header {name}" for name in rule.headers)
    if rule.endpoints:
        parts.append(f"endpoint {' or '.join(rule.endpoints)}")
    if rule.tools is not None:
        parts.append("tools" if rule.tools else "no tools")
    if rule.images is not None:
        parts.append("images" if rule.images else "no images")
    if rule.hours is not None:
        parts.append(_hours(rule.hours))
    return ", ".join(parts)


def _hours(hours: Hours) -> str:
    whole_day = hours.start == hours.end
    told = "on" if whole_day else f"from {hours.start:%H:%M} to {hours.end:%H:%M}"
    days = " ".join(name for day, name in enumerate(DAYS) if day in hours.days)
    return told if hours.days == EVERY_DAY and not whole_day else f"{told} {days}"

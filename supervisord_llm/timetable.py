"""[schedule] as it stands: the window in force, an operator's override, and what they mean for each model.

The core is told in its own terms (`ModelSpec.closed`), so that it needs no calendar. The clock that is read
here can be set: it is looked at again and again, so that a jump of it, or a suspend, counts within LOOK_S.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import did_you_mean, listing, quoted
from supervisord_llm.config.schedule import members_of
from supervisord_llm.core import explain_schedule
from supervisord_llm.core.calendar import (
    Closing,
    Override,
    Schedule,
    Switch,
    Window,
    closings,
    in_force,
    is_over,
    switches,
)
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.errors import Refused

log = logging.getLogger("llm_supervisor.schedule")

LOOK_S = 30.0
JUMP_S = 2.0
"""The wall clock is corrected by less than this all the time."""

AUTO = "auto"
"""In place of a window's name: what the hours say."""

LONGEST = timedelta(days=366)
VERSION = 1
"""Of the file."""

Kept = tuple[str | None, datetime | None]
"""What outlives the daemon of an override: its window's name and its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What is true from `at` to before `until`, by a clock that is `ahead_s` ahead of the core's."""

    at: datetime
    until: datetime
    ahead_s: float
    window: Window | None = None
    is_by_hand: bool = False
    coming: tuple[Switch, ...] = ()
    closings: Mapping[str, Closing]


class Timetable:
    """`configure` comes first, and again with every reload."""

    def __init__(
        self,
        file: Path,
        changed: Callable[[], None],
        tell: Callable[[str], None],
        steady: Callable[[], float],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            file: where an override outlives the daemon.
            changed: called when there may be something to `look` at.
            tell: takes each switch as a sentence.
            steady: the core's time, seconds.
            clock: the host's, aware.
        """
        self._file, self._changed, self._tell = file, changed, tell
        self._steady, self._clock = steady, clock
        self._config: Config | None = None
        self._schedule: Schedule | None = None
        self._in_force: InForce | None = None
        """As it was found last; None: to be found out again."""
        self._announced: InForce | None = None
        self._stirred = asyncio.Event()
        self._writing = asyncio.Lock()

    def configure(self, config: Config) -> None:
        """Take a configuration. An override stays in force as long as there is its window."""
        if self._config is None:
            kept = self._load()
        else:
            kept = None if self._schedule is None else _kept(self._schedule.override)
        self._config, self._schedule, self._in_force = config, config.schedule, None
        if kept is not None:
            self._resume(*kept)
        self._stirred.set()

    # --- what it means

    def closed(self, specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
        """`specs`, those that the schedule does not let run marked."""
        found = self._find()
        return tuple(
            self._close(spec, closing, found)
            if (closing := found.closings.get(spec.name)) is not None
            else spec
            for spec in specs
        )

    def fallback(self, name: str) -> str | None:
        """What answers in place of a model that may not run now; None: it may, or nothing does."""
        assert self._config is not None
        closed = self._find().closings
        closing = closed.get(self._config.engine_of(name))
        if closing is None or closing.window.fallback is None:
            return None
        fallback = closing.window.fallback
        return None if closed.keys() >= set(members_of(self._config, fallback)) else fallback

    def look(self) -> tuple[str, ...] | None:
        """What to start now, in this order, if anything changed since the last look; None: nothing did."""
        found, before = self._find(), self._announced
        if found is before:
            return None
        self._announced = found
        assert self._config is not None
        is_switch = before is None or found.window != before.window
        is_news = before is None or is_switch or found.is_by_hand is not before.is_by_hand
        if self._schedule is not None and is_news:
            following = found.coming[0] if found.coming else None
            self._tell(explain_schedule.stands(self._schedule, found.window, following, found.at))
        preload = found.window.preload if is_switch and found.window is not None else ()
        always = [each for name in self._config.server.preload for each in members_of(self._config, name)]
        back = [name for name in always if before is None or name in before.closings]
        return tuple(name for name in dict.fromkeys((*preload, *back)) if name not in found.closings)

    async def next_look(self) -> None:
        """Return when it is time to look again."""
        self._stirred.clear()
        wait_s = min(LOOK_S, (self._find().until - self._clock()).total_seconds())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s) + 0.001):
                await self._stirred.wait()

    def describe(self) -> dict[str, Any]:
        """What is in force, until when, and what comes; `timezone` None where no schedule is configured."""
        schedule, found = self._schedule or Schedule(zone=UTC), self._find()
        following = found.coming[0] if found.coming else None
        summary = explain_schedule.stands(schedule, found.window, following, self._clock())

        def local(at: datetime | None) -> str | None:
            return None if at is None else at.astimezone(schedule.zone).isoformat(timespec="seconds")

        return {
            "timezone": None if self._schedule is None else str(schedule.zone),
            "window": _name(found.window),
            "until": local(following.at if following else None),
            "override": found.is_by_hand,
            "override_until": local(schedule.override.until if schedule.override else None),
            "switches": [
                {"at": local(switch.at), "window": _name(switch.window)}
                for switch in found.coming[: explain_schedule.SHOWN]
            ],
            "closed": {name: local(closing.opens) for name, closing in found.closings.items()},
            "windows": [window.name for window in schedule.windows],
            "summary": "there is no [schedule]: every model may run" if self._schedule is None else summary,
        }

    # --- by hand

    async def override(self, window: str | None, for_s: float | None) -> None:
        """Put a window in force (None: none of them; "auto": what the hours say) for a time.

        Without a time it is until the schedule's own next switch. It is kept over a restart of the daemon.

        Raises:
            Refused: `not_possible`, `not_found`, `invalid_request`.
        """
        if self._schedule is None:
            raise Refused("not_possible", "cannot override the schedule: there is no [schedule]; add windows")
        schedule = replace(self._schedule, override=None)
        override = None
        if window != AUTO:
            override = Override(window=_window(schedule, window), until=self._until(schedule, for_s))
        elif for_s is not None:
            raise Refused("invalid_request", 'cannot go by the hours for a time: leave out "for"')
        self._schedule, self._in_force = replace(schedule, override=override), None
        self._stirred.set()
        self._changed()
        async with self._writing:
            await asyncio.to_thread(self._save, self._schedule.override)

    def _until(self, schedule: Schedule, for_s: float | None) -> datetime | None:
        if for_s is None:
            following = next(switches(schedule, self._clock()), None)
            return None if following is None else following.at
        if not 0 < for_s <= LONGEST.total_seconds():
            raise Refused(
                "invalid_request", f"cannot override for {for_s:g} s: up to {LONGEST.days} days can be"
            )
        return self._clock() + timedelta(seconds=for_s)

    def _resume(self, name: str | None, until: datetime | None) -> None:
        """Go on with an override of another configuration, or of an earlier run."""
        known = {} if self._schedule is None else {each.name: each for each in self._schedule.windows}
        if self._schedule is None or not (name is None or name in known):
            what = "[schedule]" if name is None else f"window {quoted(name)}"
            self._tell(f"the override of the schedule ends: there is no {what} any more")
            self._save(None)
            return
        override = Override(window=None if name is None else known[name], until=until)
        self._schedule = replace(self._schedule, override=override)

    # --- how it stands

    def _find(self) -> InForce:
        """How it stands now; worked out again when something may have changed."""
        now, found = self._clock(), self._in_force
        ahead_s = now.timestamp() - self._steady()
        if found is not None and found.at <= now < found.until and abs(ahead_s - found.ahead_s) < JUMP_S:
            return found
        override = None if self._schedule is None else self._schedule.override
        if self._schedule is not None and override is not None and is_over(override, now):
            self._schedule = replace(self._schedule, override=None)
            self._save(None)
        self._in_force = self._stand(now, ahead_s)
        return self._in_force

    def _stand(self, now: datetime, ahead_s: float) -> InForce:
        schedule = self._schedule
        far = now + LONGEST
        if schedule is None or self._config is None:
            return InForce(at=now, until=far, ahead_s=ahead_s, closings={})
        window, coming = in_force(schedule, now), tuple(switches(schedule, now))
        override, models = schedule.override, (model.name for model in self._config.with_engines)
        ends = [far if override is None or override.until is None else override.until]
        ends += [at for switch in coming[:1] for at in (switch.drains_from, switch.at)]
        return InForce(
            at=now,
            until=min(at for at in ends if at > now),
            ahead_s=ahead_s,
            window=window,
            is_by_hand=override is not None,
            coming=coming,
            closings=closings(models, window, coming, now),
        )

    def _close(self, spec: ModelSpec, closing: Closing, found: InForce) -> ModelSpec:
        assert self._schedule is not None
        begins, opens = (
            None if at is None else at.timestamp() - found.ahead_s for at in (closing.begins, closing.opens)
        )
        why = explain_schedule.closed(closing, self._schedule, found.at)
        return replace(spec, closed=why, opens_at=opens, closes_at=begins or 0.0)

    # --- on disk

    def _load(self) -> Kept | None:
        try:
            said = json.loads(self._file.read_bytes())
            name, until = said["window"], said["until"]
            if said["version"] == VERSION and isinstance(name, str | None):
                return name, None if until is None else datetime.fromtimestamp(until, UTC)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            log.warning("cannot read %s: %s; the schedule goes by its hours", self._file, error)
            return None
        log.warning("cannot read %s: it is of another version; the schedule goes by its hours", self._file)
        return None

    def _save(self, override: Override | None) -> None:
        """Never raises: it is in force all the same."""
        kept = _kept(override)
        try:
            if kept is None:
                self._file.unlink(missing_ok=True)
                return
            name, until = kept
            said = {"version": VERSION, "window": name, "until": None if until is None else until.timestamp()}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside = self._file.with_suffix(".json.new")
            aside.write_text(json.dumps(said))
            aside.replace(self._file)
        except OSError as error:
            why = error.strerror
            log.warning(
                "cannot write %s: %s; a restart forgets the override of the schedule", self._file, why
            )


def _window(schedule: Schedule, name: str | None) -> Window | None:
    """
    Raises:
        Refused: `not_found`.
    """
    if name is None:
        return None
    found = next((window for window in schedule.windows if window.name == name), None)
    if found is None:
        known = [window.name for window in schedule.windows]
        hint = did_you_mean(name, known) or f"there is {listing(map(quoted, known), 'and')}"
        raise Refused("not_found", f"cannot find a window named {quoted(name)}; {hint}")
    return found


def _name(window: Window | None) -> str | None:
    return None if window is None else window.name


def _kept(override: Override | None) -> Kept | None:
    return None if override is None else (_name(override.window), override.until)

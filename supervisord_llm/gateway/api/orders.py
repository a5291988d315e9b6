"""start, stop, restart, sleep, wake, switch: of a model, or of the members of a route."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal

from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.routes.route import Ask, NoMember, Pick, Unlabelled
from supervisord_llm.core.state import SETTLED, State
from supervisord_llm.gateway.choosing.search import Engines, choose, local_time, refused_by
from supervisord_llm.gateway.settings import Settings

Verb = Literal["start", "stop", "restart", "sleep", "wake", "switch"]
"""Orders by the names of the runtime's methods."""

FOR_ONE = frozenset({"start", "wake", "switch"})
"""What a route has done to the member that it would choose; all else is for each that runs."""


async def carry_out(settings: Settings, engines: Engines, verb: Verb, name: str) -> dict[str, Any]:
    """Returns once it is settled, with what has become of it.

    Raises:
        Refused: it cannot be done; of a route's members, the rest was done.
    """
    act: Callable[[str], Awaitable[Engine]] = getattr(engines.runtime, verb)
    route = settings.config.routes.get(name)
    if route is None:
        engine = await act(settings.config.engine_of(name))
        beside = {} if engine.name == name else {"served_by": engine.name}
        return {"model": name, "state": engine.state.value, **beside}
    if verb in FOR_ONE:
        model = chosen(settings, engines, name)
        engine = await act(settings.config.engine_of(model))
        states = _states(settings, engines, route.members)
        return {"route": name, "members": states, "model": model, "state": engine.state.value}
    fleet = engines.runtime.fleet
    served_by = dict.fromkeys(map(settings.config.engine_of, route.members))
    each_engine = [fleet.engines[name] for name in served_by if name in fleet.engines]
    running = [
        each.name for each in each_engine if (each.state is State.READY if verb == "sleep" else _runs(each))
    ]
    done = await asyncio.gather(*map(act, running), return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return {"route": name, "members": _states(settings, engines, route.members)}


def chosen(settings: Settings, engines: Engines, name: str) -> str:
    """The model that a request of which nothing is known would go to.

    Raises:
        Refused: there is none that could take it.
    """
    if name not in settings.config.routes:
        return name
    found = outcome(settings, engines, name)
    if isinstance(found, Pick):
        return found.member
    raise refused_by(found)


def outcome(settings: Settings, engines: Engines, name: str) -> Pick | NoMember:
    """What route `name` would choose for a request of which nothing is known, not even a label."""
    ask, now = Ask(local=local_time(settings.config)), asyncio.get_running_loop().time()
    while isinstance(found := choose(settings, engines, name, ask, now), Unlabelled):
        ask = replace(ask, labels={**ask.labels, found.route: None})
    return found


def _runs(engine: Engine) -> bool:
    """There is something to stop: a process, or that one is on its way."""
    return engine.is_wanted or engine.state not in SETTLED - {State.READY, State.SLEEPING}


def _states(settings: Settings, engines: Engines, members: tuple[str, ...]) -> dict[str, str]:
    fleet, engine_of = engines.runtime.fleet, settings.config.engine_of
    return {
        name: engine.state.value
        for name in members
        if (engine := fleet.engines.get(engine_of(name))) is not None
    }

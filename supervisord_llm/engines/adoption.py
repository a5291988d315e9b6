"""Finds engines that outlived their daemon, and asks each whether it is fit to be taken over."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from supervisord_llm.config.model import Config
from supervisord_llm.config.signature import signature
from supervisord_llm.core.events import EngineAdopted
from supervisord_llm.core.state import State
from supervisord_llm.engines import listening, probe, records
from supervisord_llm.engines.ask import Answer, ask
from supervisord_llm.engines.records import Record, why_lost
from supervisord_llm.engines.sleep import Sleeper, read
from supervisord_llm.errors import EngineError

log = logging.getLogger("llm_supervisor.engines")

ANSWER_S = 5.0
"""All questions together. Who loads or hangs does not answer within it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` is that of an engine that can be adopted; None where it cannot be, for this `reason`."""

    state: Literal[State.READY, State.SLEEPING] | None
    reason: str = ""


async def find(config: Config, cgroup_root: Path | None) -> list[tuple[Record, Verdict]]:
    """Engines of an earlier run that can be taken over; all others are ended, before anything is launched."""
    engines = config.paths.engines
    survey = await asyncio.to_thread(records.survey, engines)
    for sentence in survey.others:
        log.warning("%s", sentence)
    models = {model.name: model for model in config.with_engines}
    wanted = [
        record
        for record in survey.alive
        if record.model in models and record.signature == signature(models[record.model])
    ]
    verdicts = await asyncio.gather(*(adoptable(each, models[each.model].health) for each in wanted))
    found = [(record, verdict) for record, verdict in zip(wanted, verdicts, strict=True) if verdict.state]
    for record, verdict in zip(wanted, verdicts, strict=True):
        if not verdict.state:
            log.warning("cannot take over the engine of %s: %s", record.model, verdict.reason)
    keep = {record.marker for record, _ in found}
    for done in await asyncio.to_thread(records.sweep, engines, keep, cgroup_root):
        log.warning("%s", done)
    return found


async def adoptable(record: Record, health: str = probe.HEALTH) -> Verdict:
    """Whether its engine lives, answers, and whether it sleeps. Returns within 5 s; never raises."""
    if why := why_lost(record):
        return Verdict(None, why)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await _ask(record, health)
    except TimeoutError:
        return Verdict(None, f"no answer within {ANSWER_S:g} s")
    except (aiohttp.ClientError, OSError) as why:
        return Verdict(None, f"no answer from it ({why})")
    except EngineError as why:
        return Verdict(None, str(why))


def adopted(record: Record, verdict: Verdict) -> EngineAdopted:
    """The news that the engine of `record` is taken over."""
    return EngineAdopted(
        model=record.model,
        launch=record.launch,
        gpus=record.gpus,
        granted_bytes=record.granted_bytes,
        kv_bytes=record.kv_bytes,
        signature=record.signature,
        is_asleep=verdict.state is State.SLEEPING,
    )


async def _ask(record: Record, health: str) -> Verdict:
    backend = record.backend
    if record.port is not None:
        found = await asyncio.to_thread(listening.look, record.port, record.tree())
        if found.why_not:
            return Verdict(None, f"its port {record.port} is not its own: {found.why_not}")
    answer = await ask(backend, "GET", health)
    if not probe.is_good(b"%d" % answer.status):
        return Verdict(None, f"GET {health} answers {answer}")
    if record.sleep_level == 0:  # without sleep mode there is no such endpoint
        return Verdict(State.READY)
    answer = await ask(backend, "GET", "/is_sleeping")
    match _is_sleeping(answer):
        case True:
            return Verdict(State.SLEEPING)
        case False:
            if record.canary is not None:  # its daemon died while it fell asleep or woke
                await Sleeper(record.model, backend, record.canary).verify()
            return Verdict(State.READY)
        case _:
            return Verdict(None, f"GET /is_sleeping answers {answer}")


def _is_sleeping(answer: Answer) -> bool | None:
    """None where it does not say. Without VLLM_SERVER_DEV_MODE, which the model may have off, it is awake."""
    if answer.status == 404:
        return False
    found = read(answer, "is_sleeping")
    return found if isinstance(found, bool) else None

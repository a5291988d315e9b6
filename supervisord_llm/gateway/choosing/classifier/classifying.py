"""Asks the classifiers of routes what a conversation is about.

A classifier is a model like any other, and the daemon asks it in its own name, past the doors: no key,
header, right, limit or count of a client has to do with it. Whatever goes wrong costs the time limit at most,
and is not the client's trouble: its request goes where the configuration says that it falls back to.

What it was asked once it is not asked again. The question is the conversation up to what its user said last:
the calls of tools and the retries that follow are the same one, and the next turn is another, so that what
began with "hi" may still become hard. `sticky = "session"` is what keeps a session with its first answer.
"""

import asyncio
import hashlib
import logging
import math
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from supervisord_llm.config.model import Model
from supervisord_llm.core.eta import ready_in_s
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.routes.pick import plain
from supervisord_llm.core.routes.route import Classifier, Route
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.choosing.classifier.conversation import excerpt
from supervisord_llm.gateway.choosing.classifier.question import label_in, question, room_bytes
from supervisord_llm.gateway.choosing.standing import context
from supervisord_llm.gateway.expiring import Expiring
from supervisord_llm.gateway.inference.relay import Upstreams, send
from supervisord_llm.gateway.limits.rates import Rates
from supervisord_llm.gateway.policy.fields import Fields, encoded
from supervisord_llm.gateway.policy.policy import shape
from supervisord_llm.gateway.ports import Facts, Runtime
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.telemetry.record import Classified
from supervisord_llm.telemetry.recorder import Recorder

log = logging.getLogger("llm_supervisor.http")

ENDPOINT = "chat/completions"
MAX_LABELS = 10_000
KEEP_S = 3600.0
"""How long a label is remembered."""

TELL_AGAIN_S = 600.0
"""After so long a trouble that goes on is told again."""

MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a question."""

    outcome: Classified
    label: str | None = None
    """None: there is none, and the fallback has to do."""
    reason: str = ""
    """A few words for people, printable ASCII: 'tiny said "hard" in 43 ms'."""


class Classifying:
    """One per gateway."""

    def __init__(
        self, runtime: Runtime, upstreams: Upstreams, facts: Facts, recorder: Recorder, rates: Rates
    ) -> None:
        self._runtime = runtime
        self._upstreams = upstreams
        self._rates = rates
        self._facts = facts
        self._recorder = recorder
        self._labels: Expiring[bytes, str] = Expiring(MAX_LABELS, KEEP_S)
        """By question."""
        self._asked: dict[bytes, asyncio.Task[Verdict]] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._told_at: dict[str, float] = {}

    async def label(
        self, settings: Settings, route: Route, endpoint: str, body: bytes, fields: Fields
    ) -> Verdict:
        """What the route's classifier says. Takes its time limit at most and raises nothing.

        `endpoint` ("messages"), `body` and its `fields` are the request's.
        """
        clock = asyncio.get_running_loop().time
        began, model = clock(), settings.config.models[_of(route).model]
        verdict = await self._verdict(settings, route, model, endpoint, body, fields)
        took_s = clock() - began
        self._recorder.classified(route.name, verdict.outcome, took_s)
        said = verdict.reason
        if verdict.label is not None:
            when = "before" if verdict.outcome is Classified.CACHED else f"in {took_s * 1000:.0f} ms"
            said = f'said "{verdict.label}" {when}'
        return replace(verdict, reason=plain(f"{model.name} {said}"))

    async def close(self) -> None:
        """Break off what goes on."""
        tasks = (*self._asked.values(), *self._starts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _verdict(
        self, settings: Settings, route: Route, model: Model, endpoint: str, body: bytes, fields: Fields
    ) -> Verdict:
        """From memory, from somebody who asks the same just now, or from the model. Its reason names none."""
        classifier, now = _of(route), asyncio.get_running_loop().time()
        engine = self._runtime.fleet.engines.get(settings.config.engine_of(model.name))
        if engine is None:  # a reload has taken it away
            return Verdict(Classified.FAILED, reason="is not there")
        room = room_bytes(classifier, context(engine, self._facts.context_length))
        said = await bodies.off_loop(body, excerpt, endpoint, fields, room)
        if not said:
            return Verdict(Classified.EMPTY, reason="was not asked: there is no text of a user")
        asked = question(classifier, model.engine, "".join(map(str, said)))
        key = hashlib.sha256(msgspec.json.encode((route.name, model.name, asked))).digest()
        known = self._labels.get(key, now)
        if known is not None:
            return Verdict(Classified.CACHED, known)
        task = self._asked.get(key)
        if task is not None:
            theirs = await asyncio.shield(task)
            return theirs if theirs.label is None else replace(theirs, outcome=Classified.CACHED)
        if not self._is_up_in_time(classifier, model, engine, now):
            return Verdict(Classified.COLD, reason="is not up")
        work = self._ask(settings, route, model, engine.name, asked)
        task = self._asked[key] = asyncio.create_task(work, name="classify")
        task.add_done_callback(lambda done: self._settle(key, done))
        return await asyncio.shield(task)  # others may wait for it, too, when this one leaves

    def _settle(self, key: bytes, task: asyncio.Task[Verdict]) -> None:
        del self._asked[key]
        if not task.cancelled() and (label := task.result().label) is not None:
            self._labels.set(key, label, asyncio.get_running_loop().time())

    def _is_up_in_time(self, classifier: Classifier, model: Model, engine: Engine, now: float) -> bool:
        """Whether asking it makes sense; if not, it is on its way from now on."""
        left_s = 0.0 if model.engine == "remote" else ready_in_s(engine, now)  # which has nothing to load
        if left_s is not None and left_s <= classifier.timeout_s:
            return True
        name = engine.name
        if name not in self._starts:
            task = self._starts[name] = asyncio.create_task(self._start(name), name="classifier")
            task.add_done_callback(lambda _: self._starts.pop(name))
        return False

    async def _start(self, model: str) -> None:
        """Wait for the model's engine, as a request would; the log tells why it could not start."""
        async with self._runtime.lease(model, source="classifier") as lease:
            await asyncio.wait([lease.admission])

    async def _ask(
        self, settings: Settings, route: Route, model: Model, engine: str, asked: Fields
    ) -> Verdict:
        classifier = _of(route)
        try:
            async with asyncio.timeout(classifier.timeout_s):
                raw = await self._complete(settings, model, engine, asked)
        except TimeoutError:
            self._tell(route.name, f"{model.name} took longer than {classifier.timeout_s:g} s")
            return Verdict(Classified.LATE, reason=f"took longer than {classifier.timeout_s:g} s")
        except (Refused, aiohttp.ClientError, OSError, _Unusable) as why:
            self._tell(route.name, f"{model.name} could not be asked: {why}")
            return Verdict(Classified.FAILED, reason="could not be asked")
        except Exception:  # a bug here must not cost anybody an answer
            log.exception("cannot classify for routes.%s; this is a bug, please report it", route.name)
            return Verdict(Classified.FAILED, reason="could not be asked")
        label = label_in(raw, tuple(classifier.labels))
        if label is None:
            self._tell(route.name, f"{model.name} answered with none of the labels")
            return Verdict(Classified.UNCLEAR, reason="gave no label")
        return Verdict(Classified.LABELLED, label)

    async def _complete(self, settings: Settings, model: Model, engine: str, asked: Fields) -> bytes:
        """The engine's answer.

        Raises:
            Refused, aiohttp.ClientError, OSError, _Unusable: there is none.
        """
        ours = {"model": encoded(settings.served_as.get(model.name, model.name))}
        shaped = shape(settings.policies[model.name], ENDPOINT, asked, ours)
        body = msgspec.json.encode(shaped.fields)
        self._rates.take(model.name)
        async with self._runtime.lease(engine, source="classifier") as lease:
            await lease.settled("ask")
            backend = lease.admission.result()
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **backend.headers}
            async with self._upstreams.connected(engine, backend) as session:
                reply = await send(
                    self._upstreams, session, engine, backend, "POST", f"/v1/{ENDPOINT}", headers, body
                )
                try:
                    return await _whole(reply)
                finally:
                    reply.close()

    def _tell(self, route: str, trouble: str) -> None:
        """In the log, once for as long as it goes on."""
        now = asyncio.get_running_loop().time()
        if now >= self._told_at.get(route, -math.inf) + TELL_AGAIN_S:
            self._told_at[route] = now
            log.warning("cannot classify for routes.%s: %s; it goes on with its fallback, and the metric "
                        "llm_supervisor_classifications_total counts how often", route, trouble)  # fmt: skip


class _Unusable(Exception):
    """What came is no answer."""


async def _whole(reply: aiohttp.ClientResponse) -> bytes:
    """
    Raises:
        _Unusable: it is no answer, or too long a one.
    """
    if reply.status != 200:
        raise _Unusable(f"it answered with status {reply.status}")
    raw = b""
    async for chunk in reply.content.iter_any():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise _Unusable("its answer is too long")
    return raw


def _of(route: Route) -> Classifier:
    assert route.classifier is not None, "config checks see to it"
    return route.classifier

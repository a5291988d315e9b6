"""The runtime's Launcher for models elsewhere: no process, but a circuit that opens when an API fails.

A launch asks whether the API answers. Ready is a closed circuit; too many answers in a row that fail are its
end, after which the core waits before the next launch. What has begun to stream goes on.
"""

import asyncio
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from supervisord_llm import __version__
from supervisord_llm.config.model import Model
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.errors import EngineError
from supervisord_llm.outage import complaint, outage
from supervisord_llm.runtime.ports import (
    PEER_HEADER,
    Backend,
    Beginning,
    Exit,
    InFlight,
    Progressing,
    Report,
)

PROBE_S = 5.0
FAILURES = 5
"""So many failures in a row open the circuit; after it was open, the first one does."""

SENT = {"User-Agent": f"llm-supervisor/{__version__}"}
SENT_TO_PEERS = {**SENT, PEER_HEADER: "1"}


class RemoteEngine:
    """One life of a circuit: from the probe that closes it until it opens."""

    kv_bytes: int | None = None

    def __init__(self, model: Model, patience: int) -> None:
        """`patience`: so many failures in a row open it."""
        self._patience = patience
        self._failures = 0
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.configure(model)

    def configure(self, model: Model) -> None:
        """Ask with these settings from now on: a reload may bring another key."""
        self._model = model
        self.backend = backend(model)

    @property
    def has_opened(self) -> bool:
        """That was its end; it was not stopped."""
        return self._exit.done() and self._exit.result().answers_on

    async def ready(self) -> None:
        if why := await probe(self.backend, self._model.source if self._model.peer else ""):
            self.open(why)
        if self._exit.done():
            await asyncio.Event().wait()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    def began(self, beginning: Beginning) -> None:
        """Count how an answer began. That there is a limit (429) says neither good nor bad."""
        if beginning.status == 429:
            return
        why = beginning.why if beginning.status is None else _failure(beginning.status)
        if not why:
            self._failures, self._patience = 0, FAILURES
            return
        self._failures += 1
        if self._failures >= self._patience:
            times = "" if self._failures == 1 else f"{self._failures} times in a row, lastly: "
            self.open(times + why)

    def open(self, why: str) -> None:
        """Ask it nothing more. What has begun goes on."""
        if not self._exit.done():
            self._exit.set_result(Exit(None, f"{self.backend.origin}: {why}", answers_on=True))

    async def sleep(self, level: int) -> None:
        raise EngineError("cannot put a model elsewhere to sleep; stop it instead")

    async def wake(self, level: int) -> None:
        raise EngineError("cannot wake a model elsewhere; start it instead")

    async def progressing(self, in_flight: InFlight = frozenset) -> Progressing | None:
        return None

    async def stop(self, *, kill: bool, dump: bool = False) -> None:
        """It is asked nothing more."""
        if not self._exit.done():
            self._exit.set_result(Exit(None, "stopped as asked"))


class RemoteLauncher:
    """Launches circuits for models elsewhere, which do not outlive the daemon. `configure` comes first."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._live: dict[str, RemoteEngine] = {}
        """The last one of each."""

    def configure(self, models: Iterable[Model]) -> None:
        """These are in the configuration."""
        self._models = {model.name: model for model in models if model.engine == "remote"}
        self._live = {name: engine for name, engine in self._live.items() if name in self._models}
        for name, engine in self._live.items():
            engine.configure(self._models[name])

    async def launch(self, order: StartEngine, report: Report) -> RemoteEngine:
        """Probe one that is in the configuration."""
        before = self._live.get(order.model)
        is_suspect = before is not None and before.has_opened
        engine = RemoteEngine(self._models[order.model], 1 if is_suspect else FAILURES)
        self._live[order.model] = engine
        return engine

    def began(self, model: str, beginning: Beginning) -> None:
        """Tell the model's circuit how an answer began."""
        engine = self._live.get(model)
        if engine is not None:
            engine.began(beginning)

    def lost(self, model: str, why: str) -> None:
        """Open the model's circuit: it is known by other means that nobody answers there."""
        engine = self._live.get(model)
        if engine is not None:
            engine.open(why)


def backend(model: Model) -> Backend:
    """Where a model elsewhere is asked."""
    url = urlsplit(model.url)
    sent = SENT_TO_PEERS if model.peer else SENT
    return Backend(
        origin=f"{url.scheme}://{url.netloc}",
        base=url.path,
        headers=sent if model.key is None else {**sent, "Authorization": f"Bearer {model.key}"},
        elsewhere=True,
        is_peer=bool(model.peer),
        silence_s=model.stall_timeout_s,
    )


async def probe(at: Backend, listed: str = "") -> str:
    """Whether it answers and takes the key: "", or why not. An API without a list of models is alive, too.

    `listed`: a model that must be in that list, "" where that does not matter.
    """
    path = f"/v1/models/{quote(listed, safe='/:@+')}" if listed else "/v1/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_S)) as session,
            session.get(URL(at.url(path), encoded=True), headers=at.headers, allow_redirects=False) as answer,
        ):
            if listed and answer.status in (403, 404):
                return f"it has no model {listed}, or not for this key ({answer.status})"
            return complaint(answer.status, answer.headers.get("Location", ""))
    except (aiohttp.ClientError, OSError) as why:
        return outage(why, PROBE_S)


def _failure(status: int) -> str:
    """Why an answer with this status is one; "" where it is not. 403 may be about what was asked."""
    return "" if status == 403 else complaint(status)

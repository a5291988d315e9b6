"""Other llm-supervisors: each is asked every half a minute for its models, which are served here as well.

What it says is believed as far as a list goes: names and lengths, of limited number. How to reach it is the
configuration's alone.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from supervisord_llm.config.model import Config, Model, Peer
from supervisord_llm.config.peers import Offer, merged
from supervisord_llm.core.card import Card
from supervisord_llm.engines.remote import SENT_TO_PEERS
from supervisord_llm.outage import complaint, outage
from supervisord_llm.runtime.tasks import Tasks

log = logging.getLogger("llm_supervisor.peers")

LOOK_S = 30.0
TIMEOUT_S = 5.0
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 60.0
"""After a failure, it is asked again after these times, each twice the one before."""

FIRST_LOOK_S = 2.0
LOST_AFTER = 2
"""So many failures in a row say that it is away."""

KEPT_S = 300.0
"""For how long the models of a peer that is away stay listed."""

MOST_BYTES = 4 * 1024**2
MOST_MODELS = 500

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._:@+-]*)*")
_MODALITIES = frozenset({"text", "image", "video", "audio"})
_TASKS = {"embeddings": "embed", "scores": "classify"}


class Away(Exception):
    """Why a peer cannot be asked, as the end of a sentence about it."""


@dataclass(slots=True)
class _Seen:
    """What is known of one peer."""

    peer: Peer
    offers: tuple[Offer, ...] = ()
    failures: int = 0
    away: str = ""
    """Why it could not be asked the last time."""
    heard_at: float | None = None
    """Loop time of its last list."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """It has been, well or not."""
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)


class Peers:
    """`configure` comes first, and again with every reload; it needs a running loop."""

    def __init__(self, changed: Callable[[], None], lost: Callable[[str, str], None]) -> None:
        """
        Args:
            changed: called when `merged` says something else than before, or a peer is back.
            lost: called with each model, by its name here, that can be had no more, and why.
        """
        self._changed, self._lost = changed, lost
        self._named: tuple[Model, ...] = ()
        """Models of peers that the configuration names, listed or not."""
        self._seen: dict[str, _Seen] = {}
        self._tasks = Tasks()

    def configure(self, config: Config) -> None:
        """Ask these peers from now on, at once; what was found of them before stays."""
        self._named = tuple(model for model in config.models.values() if model.peer)
        before, self._seen = self._seen, {}
        for seen in before.values():
            if seen.task is not None:
                seen.task.cancel()
        for peer in config.peers:
            known = before.get(peer.name)
            seen = self._seen[peer.name] = (
                known if known is not None and known.peer.url == peer.url else _Seen(peer)
            )
            seen.peer = peer
            seen.task = self._tasks.start(f"peer {peer.name}", self._follow(seen))

    async def first_look(self) -> None:
        """Return once each has been asked, so that what it has is there from the start; or after a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                for seen in tuple(self._seen.values()):
                    await seen.asked.wait()

    def merged(self, config: Config) -> Config:
        """The configuration with the models that were found."""
        return merged(config, {name: seen.offers for name, seen in self._seen.items()})

    def card(self, model: Model) -> Card | None:
        """What a peer's model is for; None where the peer has not told."""
        offers = self._seen[model.peer].offers if model.peer in self._seen else ()
        return next((offer.card for offer in offers if offer.name == model.source), None)

    def describe(self) -> dict[str, Any]:
        """Each peer, how many models it lists, and why it is away; "" where it is not."""
        return {
            name: {"url": seen.peer.url, "listed": len(seen.offers), "away": seen.away}
            for name, seen in self._seen.items()
        }

    async def close(self) -> None:
        await self._tasks.cancel_all()

    async def _follow(self, seen: _Seen) -> None:
        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as web:
            while True:
                try:
                    offers = await ask(web, seen.peer)
                except Away as why:
                    wait_s = self._missed(seen, str(why), clock())
                else:
                    wait_s = LOOK_S
                    if seen.away:
                        log.info("peer %s answers again", seen.peer.name)
                    is_back, seen.failures, seen.away, seen.heard_at = bool(seen.away), 0, "", clock()
                    self._take(seen, offers, is_back=is_back)
                seen.asked.set()
                await asyncio.sleep(wait_s)

    def _missed(self, seen: _Seen, why: str, now: float) -> float:
        """It could not be asked; seconds until it is the next time."""
        if why != seen.away:
            log.warning("cannot list the models of peer %s at %s: %s", seen.peer.name, seen.peer.url, why)
        seen.away = why
        seen.failures += 1
        if seen.failures == LOST_AFTER:
            named = (model.name for model in self._named if model.peer == seen.peer.name)
            for name in dict.fromkeys((*named, *_names(seen.peer, seen.offers))):
                self._lost(name, why)
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(10, seen.failures - 1))
        if seen.heard_at is None:
            return wait_s
        left_s = seen.heard_at + KEPT_S - now
        if left_s <= 0:
            self._take(seen, ())
            return wait_s
        return min(wait_s, left_s)

    def _take(self, seen: _Seen, offers: tuple[Offer, ...], *, is_back: bool = False) -> None:
        if offers != seen.offers:
            gone = [offer for offer in seen.offers if all(offer.name != each.name for each in offers)]
            seen.offers = offers
            for name in _names(seen.peer, gone):
                self._lost(name, "it is not listed there any more")
            log.info("peer %s lists %d models", seen.peer.name, len(offers))
        elif not is_back:
            return
        self._changed()


def _names(peer: Peer, offers: Iterable[Offer]) -> list[str]:
    """What the offered models are called here."""
    return [f"{peer.name}/{offer.name}" for offer in offers]


async def ask(web: aiohttp.ClientSession, peer: Peer) -> tuple[Offer, ...]:
    """What a peer lists.

    Raises:
        Away: nothing that could be used.
    """
    if peer.no_key:
        raise Away(peer.no_key)
    headers = SENT_TO_PEERS if peer.key is None else SENT_TO_PEERS | {"Authorization": f"Bearer {peer.key}"}
    try:
        async with web.get(f"{peer.url}/v1/models", headers=headers, allow_redirects=False) as answer:
            if why := complaint(answer.status, answer.headers.get("Location", "")):
                raise Away(why)
            raw = b""
            async for chunk in answer.content.iter_any():
                raw += chunk
                if len(raw) > MOST_BYTES:
                    raise Away("its list of models is too long; check `url`")
    except (aiohttp.ClientError, OSError) as error:
        raise Away(outage(error, TIMEOUT_S)) from None
    try:
        listed = json.loads(raw)["data"]
        return tuple(_offers(listed))[:MOST_MODELS]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Away(f"what it answers is no list of models ({answer.status}); check `url`") from None


def _offers(listed: Any) -> Iterator[Offer]:
    """What can be used of a list: each name once. One that no path or header can carry is left out."""
    known: set[str] = set()
    for entry in listed:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and len(name) <= 200 and _NAME.fullmatch(name) and name not in known:
            known.add(name)
            length = entry.get("max_model_len")
            is_length = isinstance(length, int) and not isinstance(length, bool) and 0 < length < 2**31
            yield Offer(name=name, max_model_len=length if is_length else None, card=_card(entry))


def _card(entry: dict[str, Any]) -> Card:
    architecture = entry.get("architecture")
    told = architecture if isinstance(architecture, dict) else {}
    inputs = [word for word in _words(told.get("input_modalities")) if word in _MODALITIES]
    tasks = [_TASKS[word] for word in _words(told.get("output_modalities")) if word in _TASKS]
    task: Any = tasks[0] if tasks else "generate"
    return Card(inputs=tuple(inputs) or ("text",), task=task)


def _words(raw: object) -> list[str]:
    return [word for word in raw if isinstance(word, str)] if isinstance(raw, list) else []

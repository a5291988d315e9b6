"""What each model will take of a GPU: its metadata and its flags, joined by the core."""

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.sizing.architecture import parse
from supervisord_llm.core.sizing.estimating import estimate, suggest_max_model_len
from supervisord_llm.core.sizing.fields import UnknownArchitecture
from supervisord_llm.core.sizing.lora import flags_of, rank_of
from supervisord_llm.core.sizing.serving import DEFAULT_ADAPTER_RANK, Serving, read_serving
from supervisord_llm.provision.adapters import read_adapter
from supervisord_llm.provision.metadata import (
    Metadata,
    UnreadableMetadata,
    ask,
    cached_snapshot,
    read_config,
    read_local,
)
from supervisord_llm.provision.weights import Weights, local_path

log = logging.getLogger(__name__)

Key = tuple[str, str | None, int]
"""Source, revision, and when the files changed."""


class Estimates:
    """Of all models. What files told is kept until they change, what the hub told until there are files."""

    def __init__(
        self, weights: Weights, environ: Mapping[str, str], *, cuda: bool, may_ask: bool = True
    ) -> None:
        """With `may_ask` false nobody answers here, and the hub is not asked."""
        self._weights = weights
        self._may_ask = may_ask
        self._is_offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self.cuda = cuda
        self._files: dict[Key, Metadata] = {}
        self._hub: dict[tuple[str, str | None], Metadata] = {}
        self._lengths: dict[Key, int] = {}
        self._notes: dict[str, str] = {}

    async def of(self, model: Model) -> Estimate | None:
        """The model's estimate, from its files or, while they are not here, from the hub. Never raises.

        Milliseconds for files; ASK_TIMEOUT_S at most for the hub.
        """
        try:
            return self._join(model, await self._find(model))
        except (UnreadableMetadata, UnknownArchitecture) as why:
            self._cannot(model, why)
            return None

    def local(self, model: Model) -> Estimate | None:
        """The same from what is here, without the hub. Blocks for milliseconds. Never raises."""
        try:
            return self._join(model, self._here(model))
        except (UnreadableMetadata, UnknownArchitecture) as why:
            self._cannot(model, why)
            return None

    def note(self, model: Model) -> str:
        """Why the last estimate could not be told, as a sentence; "" where it could."""
        return self._notes.get(model.name, "")

    def max_model_len(self, model: Model) -> int | None:
        """The context length in force: as configured, else what vLLM makes of a config.json that is here."""
        if (asked := self._serving(model).max_model_len) is not None:
            return asked
        try:
            place = self._place(model)
            key = _key(model, place)
            overrides = _overrides(model)
            if (length := self._lengths.get(key)) is None or overrides:
                config = read_config(place if place.is_dir() else place.parent)
                length = parse({**config, **overrides}).max_model_len
            if not overrides:
                self._lengths[key] = length
            return length
        except (UnreadableMetadata, UnknownArchitecture):
            return None

    def suggest_max_model_len(self, model: Model, budget_bytes: int) -> int | None:
        """The longest context with which it starts on GPUs of this budget; None: unknown, or none is."""
        try:
            found = self._here(model)
            return suggest_max_model_len(
                parse({**found.config, **_overrides(model)}),
                found.weights,
                self._serving(model),
                budget_bytes,
            )
        except (UnreadableMetadata, UnknownArchitecture):
            return None

    # --- joining ----------------------------------------------------

    def _join(self, model: Model, found: Metadata) -> Estimate:
        architecture = parse({**found.config, **_overrides(model)})
        told = estimate(architecture, found.weights, self._serving(model))
        self._notes.pop(model.name, None)
        return told

    def _cannot(self, model: Model, why: Exception) -> None:
        note = f"what {model.name} will take of a GPU cannot be told before it ran: {why}"
        if self._notes.get(model.name) != note:
            log.info("%s", note)
        self._notes[model.name] = note

    def _serving(self, model: Model) -> Serving:
        ranks = [
            rank_of(read_adapter(self._weights.find(each))) or DEFAULT_ADAPTER_RANK for each in model.adapters
        ]
        return read_serving(
            {**flags_of(ranks, model.flags), **model.flags} if ranks else model.flags,
            tensor_parallel=model.tensor_parallel,
            max_concurrent=model.max_concurrent,
            on_gpu=self.cuda and model.gpus != (),
        )

    # --- finding ----------------------------------------------------

    async def _find(self, model: Model) -> Metadata:
        counted: Metadata | None = None
        asked = model.source, model.revision
        if local_path(model) is not None or self._has_files(model):
            found = await asyncio.to_thread(self._read, model)
            if not found.is_counted or local_path(model) is not None:
                return found
            counted = found
        if asked not in self._hub:
            try:
                self._hub[asked] = await self._ask(model)
            except UnreadableMetadata:
                if counted is None:
                    raise
                return counted
        return self._hub[asked]

    async def _ask(self, model: Model) -> Metadata:
        if self._is_offline:
            raise UnreadableMetadata(f"{model.source} is not downloaded, and HF_HUB_OFFLINE is set")
        if not self._may_ask:
            raise UnreadableMetadata(f"{model.source} is not downloaded, and the daemon has no network")
        environ = await asyncio.to_thread(self._weights.child_environ)
        return await ask(model.source, model.revision, self._weights.hub, environ)

    def _here(self, model: Model) -> Metadata:
        """Of the files, or what the hub told before."""
        told = self._hub.get((model.source, model.revision))
        if told is not None and not self._has_files(model):
            return told
        return self._read(model)

    def _has_files(self, model: Model) -> bool:
        try:
            return self._place(model).exists()
        except UnreadableMetadata:
            return False

    def _place(self, model: Model) -> Path:
        """Where the model's files are, complete or not.

        Raises:
            UnreadableMetadata: they are not here.
        """
        if (local := local_path(model)) is not None:
            return local
        found = self._weights.find(model) or cached_snapshot(model, self._weights.hub)
        if found is None:
            raise UnreadableMetadata(
                f"{model.source} is not downloaded; run llm-supervisor pull {model.name}"
            )
        return found

    def _read(self, model: Model) -> Metadata:
        place = self._place(model)
        key = _key(model, place)
        found = self._files.get(key)
        if found is None:
            found = read_local(place)
            if not found.is_counted:  # files that are missing may come
                self._files[key] = found
        return found


def _key(model: Model, place: Path) -> Key:
    try:
        directory = place if place.is_dir() else place.parent
        changed = max(file.stat().st_mtime_ns for file in (place, directory, directory / "config.json"))
    except OSError as why:
        raise UnreadableMetadata(f"{why.filename} cannot be read ({why.strerror})") from why
    return model.source, model.revision, changed


def _overrides(model: Model) -> Mapping[str, Any]:
    """hf-overrides: what vLLM lays over config.json."""
    told = next(
        (value for name, value in model.flags.items() if name.replace("_", "-") == "hf-overrides"), None
    )
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            return {}
    return told if isinstance(told, dict) else {}

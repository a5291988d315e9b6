"""What was learnt of models, on disk: measured once, used by later starts with the same configuration."""

import asyncio
import json
import logging
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supervisord_llm.core.fleet import Learnt

log = logging.getLogger("llm_supervisor.gpu")

VERSION = 1
"""Of the file. Another one is not read: what it held is learnt again."""

A_YEAR_S = 366 * 24 * 3600.0


class LearntStore:
    """One file a model, `<directory>/<model>.json`. What the newest call said wins."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._newest: dict[str, str] = {}
        """Text to be written, by model."""
        self._writing = threading.Lock()
        self._is_failing = False

    def load(self, model: str, signature: str) -> Learnt:
        """What was learnt while the configuration had this signature; else nothing. Never raises."""
        try:
            said = json.loads(self._path(model).read_bytes())
            if said["version"] == VERSION and said["signature"] == signature:
                return _parse(said["learnt"])
        except (FileNotFoundError, NotADirectoryError):
            pass  # nothing learnt yet
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("cannot read %s: %s; it is measured again", self._path(model), error)
        return Learnt()

    async def remember(self, model: str, signature: str, learnt: Learnt) -> None:
        """Write it down. Never raises: what cannot be written is learnt again."""
        said = {"version": VERSION, "signature": signature, "learnt": asdict(learnt)}
        self._newest[model] = json.dumps(said)
        await asyncio.to_thread(self._write, model)

    def _write(self, model: str) -> None:
        with self._writing:
            text = self._newest.pop(model, None)
            if text is None:
                return  # it went with the call before
            try:
                _replace(self._path(model), text)
            except OSError as error:
                if not self._is_failing:
                    log.warning(
                        "cannot write %s: %s; what is learnt of models is lost with a restart until it can: "
                        "free some space, or make it writable",
                        self._path(model),
                        error.strerror,
                    )
                self._is_failing = True
            else:
                self._is_failing = False

    def _path(self, model: str) -> Path:
        return self._directory / f"{model}.json"


def _replace(path: Path, text: str) -> None:
    """Write it whole or not at all, also where the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".json.new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parse(said: dict[str, Any]) -> Learnt:
    """
    Raises:
        ValueError, TypeError, KeyError: not what was learnt of a model.
    """
    return Learnt(
        footprint_bytes=_size(said["footprint_bytes"]),
        kv_bytes=_size(said["kv_bytes"]),
        start_s=_duration(said["start_s"]),
        wake_s=_duration(said["wake_s"]),
        residue_bytes=_size(said["residue_bytes"]),
        adjusted=tuple((str(flag), _count(value)) for flag, value in said["adjusted"]),
        is_exhausted=said.get("is_exhausted") is True,
    )


def _size(said: object) -> int | None:
    return None if said is None else _count(said)


def _count(said: object) -> int:
    if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
        return said
    raise ValueError(f"{said!r} is no number of bytes or sequences")


def _duration(said: object) -> float | None:
    if said is None:
        return None
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= A_YEAR_S:
        return said
    raise ValueError(f"{said!r} is no duration")

"""What makes two engines the same process."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from supervisord_llm.config.model import Limits, Model, Share, Venv


def signature(model: Model) -> str:
    """A hash of everything that shapes the engine's process, the same in every run.

    Two configurations whose signatures of a model are equal can share its running engine: a reload keeps it.
    Left out is what only the supervisor acts on (path, idle times, queue, timeouts, keep, restart,
    max_concurrent), and the name, since one compares the engines of one name.
    """
    if model.engine == "remote":  # a new key takes effect at once; one that is gone ends it
        there = {"url": model.url, "source": model.source, "no_key": bool(model.no_key)}
        return _hash({"engine": "remote"} | there)
    shape: dict[str, Any] = {
        "env": dict(model.env),
        "gpus": model.gpus,
        "tensor_parallel": model.tensor_parallel,
        "vram": f"{model.vram.fraction:.9f}" if isinstance(model.vram, Share) else model.vram,
    }
    shape |= _of_vllm(model) if model.engine == "vllm" else {"command": model.command}
    if model.limits != Limits():  # so that models without are what they were to earlier versions
        shape["limits"] = asdict(model.limits)
    if model.network != "isolated":
        shape["network"] = model.network
    return _hash(shape)


def _of_vllm(model: Model) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "source": model.source,
        "revision": model.revision,
        "venv": _venv(model.venv),
        "flags": dict(model.flags),
        "aliases": model.aliases,
        "sleep_level": model.sleep_level,
    }
    if model.adapters:
        shape["adapters"] = [(each.name, each.source, each.revision) for each in model.adapters]
    if model.tools != "auto":  # launched without a parser of our choice
        shape["tool_parser"] = None
    return shape


def _hash(shape: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _venv(venv: Venv | None) -> dict[str, Any] | None:
    if venv is None:
        return None
    return {
        "path": str(venv.path),
        "requirements": venv.requirements,
        "python": venv.python,
        "index_url": venv.index_url,
        "extra_index_urls": venv.extra_index_urls,
        "find_links": venv.find_links,
    }

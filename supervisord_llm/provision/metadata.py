"""What the files of a model say of it: config.json, and the headers of its weights. Reads no weights.

Where they are not here yet, the hub is asked for the same in a child process (see `ask_hub`): its client is
slow to import and cannot be cancelled.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.sizing.architecture import Architecture, parse
from supervisord_llm.core.sizing.fields import UnknownArchitecture
from supervisord_llm.core.sizing.parameters import count
from supervisord_llm.core.sizing.weights import CASTABLE, Group, Role, Tensor, Weights, tally
from supervisord_llm.provision.selection import wanted
from supervisord_llm.provision.weights import local_path

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 10.0
"""How long the hub may take to answer; what it told until then is used."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""
MAX_CONFIG_BYTES = 16 << 20
_LENGTH_BYTES = 8

_SAFETENSORS_NAMES = {"float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}


class UnreadableMetadata(ValueError):
    """The files do not tell; the message ends a sentence "cannot be told: …"."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A parsed config.json, and what its weights add up to."""

    config: Mapping[str, Any]
    weights: Weights
    is_counted: bool = False
    """Counted from the config, because the files are not (all) here."""


def read_local(place: Path) -> Metadata:
    """Of a directory of weights, or of a single .gguf beside its config.json. Blocks.

    Shards that are missing are no reason to refuse: then the weights are counted from the config.

    Raises:
        UnreadableMetadata: what is missing or damaged.
    """
    directory = place if place.is_dir() else place.parent
    config = read_config(directory)
    try:
        architecture = parse(config)
        if place.suffix == ".gguf":
            return Metadata(config, (_file_group([place], "GGUF"),))
        weights = _stored(directory, config, architecture)
        if weights is None:
            return Metadata(config, count(config), is_counted=True)
        return Metadata(config, weights)
    except UnknownArchitecture as why:
        raise UnreadableMetadata(str(why)) from why
    except OSError as why:
        raise UnreadableMetadata(f"{why.filename} cannot be read ({why.strerror})") from why


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """
    Raises:
        UnreadableMetadata: the file is not there, or is not a JSON object.
    """
    file = directory / name
    try:
        with file.open("rb") as content:
            config = json.loads(content.read(MAX_CONFIG_BYTES))
    except OSError as why:
        raise UnreadableMetadata(f"{file} cannot be read ({why.strerror})") from why
    except (ValueError, RecursionError) as why:
        raise UnreadableMetadata(f"{file} is not JSON") from why
    if not isinstance(config, dict):
        raise UnreadableMetadata(f"{file} is not a JSON object")
    return config


def _stored(directory: Path, config: Mapping[str, Any], architecture: Architecture) -> Weights | None:
    """What the files add up to; None where some are missing."""
    names = [str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()]
    files = [directory / name for name in wanted(names)]
    safetensors = [file for file in files if file.suffix == ".safetensors" and file.parent == directory]
    if safetensors:
        expected = _index(directory)
        if expected is not None and not expected <= {file.name for file in safetensors}:
            return None
        if expected:  # adapters and leftovers are not in it
            safetensors = [file for file in safetensors if file.name in expected]
        return tally((tensor for file in safetensors for tensor in read_header(file)), architecture)
    pickles = [file for file in files if file.suffix in (".bin", ".pt", ".pth") and file.parent == directory]
    if pickles and not architecture.quantization:
        return (_file_group(pickles, _SAFETENSORS_NAMES.get(architecture.dtype, "BF16")),)
    if gguf := list(directory.glob("*.gguf")):
        if len(gguf) > 1:
            raise UnreadableMetadata(f"{directory} has several .gguf files, of which vLLM would load one")
        return (_file_group(gguf, "GGUF"),)
    return None


def _file_group(files: list[Path], dtype: str) -> Group:
    size = sum(file.stat().st_size for file in files)
    return Group(Role.DENSE, dtype, size // CASTABLE.get(dtype, 1), size)


def _index(directory: Path) -> set[str] | None:
    """The names of all shards; None where no index tells."""
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_bytes())
        return {str(name) for name in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_header(file: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UnreadableMetadata: it is not one, or not all of it is there.
    """
    try:
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
                raise UnreadableMetadata(f"{file} is no whole safetensors file")
            header = json.loads(content.read(length))
        yield from tensors_of(header)
    except OSError as why:
        raise UnreadableMetadata(f"{file} cannot be read ({why.strerror})") from why
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as why:
        if isinstance(why, UnreadableMetadata):
            raise
        raise UnreadableMetadata(f"the header of {file} is damaged") from why


def tensors_of(header: Mapping[str, Any]) -> Iterator[Tensor]:
    """The entries of a parsed header.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not one.
    """
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield Tensor(name, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), end - begin)


def cached_snapshot(model: Model, hub: Path) -> Path | None:
    """Where the hub's cache has the model's revision, complete or not; None where it has not."""
    if local_path(model) is not None:
        return None
    root = hub / ("models--" + model.source.replace("/", "--"))
    revision = model.revision or "main"
    commit = revision
    with contextlib.suppress(OSError, ValueError):
        commit = (root / "refs" / revision).read_text().strip()
    snapshot = root / "snapshots" / commit
    try:
        return snapshot if commit and (snapshot / "config.json").is_file() else None
    except (OSError, ValueError):
        return None


async def ask(repo: str, revision: str | None, hub: Path, environ: Mapping[str, str]) -> Metadata:
    """What the hub tells of a repository, in ASK_TIMEOUT_S at most. Cancelling ends the child.

    Raises:
        UnreadableMetadata: why it does not.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "supervisord_llm.provision.ask_hub"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(environ),
        start_new_session=True,
        limit=MAX_CONFIG_BYTES,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    told: dict[str, Any] = {}
    silent = f"did not answer in {ASK_TIMEOUT_S:.0f} s"
    try:
        child.stdin.write(json.dumps({"repo": repo, "revision": revision, "cache": str(hub)}).encode())
        child.stdin.close()
        with contextlib.suppress(TimeoutError, ValueError):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                async for line in child.stdout:
                    told |= json.loads(line)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()
    if "config" not in told:
        raise UnreadableMetadata(str(told.get("error", f"{repo} is not downloaded, and the hub {silent}")))
    if "weights" not in told:
        log.info(
            "the weights of %s are counted from its config: %s", repo, told.get("error", f"the hub {silent}")
        )
    try:
        return _from_hub(told)
    except UnknownArchitecture as why:
        raise UnreadableMetadata(str(why)) from why


def _from_hub(told: Mapping[str, Any]) -> Metadata:
    config = told["config"]
    parse(config)
    if groups := told.get("weights"):
        return Metadata(config, tuple(Group(Role(role), *rest) for role, *rest in groups))
    return Metadata(config, count(config), is_counted=True)

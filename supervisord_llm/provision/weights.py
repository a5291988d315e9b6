"""Each model's weights: a local directory as it is, or a snapshot of a model hub at one commit.

<state>/weights/MODEL.json records a finished, verified download. Nothing else is trusted: not a snapshot
directory that exists, not a branch name that may have moved.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from supervisord_llm.config.credentials import Keys
from supervisord_llm.config.model import Model, Paths
from supervisord_llm.core.card import Card, read_card
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.lock import locked
from supervisord_llm.runtime.ports import Progress, Report

log = logging.getLogger(__name__)

_PASSED_ON = re.compile(
    r"PATH|HOME|TMPDIR|LANG|LC_\w+|XDG_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(?i:\w+_proxy)|HF_\w+|HUGGING\w+"
)
"""The variables the download may see: HF_TOKEN is one of them, other keys are not."""

TERM_TIMEOUT_S = 3.0
_LINE_LIMIT = 1 << 24  # bytes; the last line names every file of the repository


class Weights:
    """The weights of all models.

    `environ` has the hub's variables (HF_TOKEN, HF_HOME, HF_ENDPOINT, …). Unless it has HF_TOKEN, the dotenv
    files of the configuration in `folder` may; they are read when a download starts.
    """

    def __init__(self, paths: Paths, environ: Mapping[str, str], folder: Path | None = None) -> None:
        self._records = paths.state / "weights"
        self._environ = environ
        self._folder = folder
        self.hub = hub_cache(paths, environ)
        self._told: dict[str, tuple[tuple[str, str | None, int], Told]] = {}

    def find(self, model: Model) -> Path | None:
        """The directory of complete weights; None where they are not (all) there."""
        if (local := local_path(model)) is not None:
            return local if local.exists() else None
        record = self._record(model)
        if record is None:
            return None
        snapshot = Path(record["snapshot"])
        try:
            for name, size in record["files"].items():
                if (snapshot / name).stat().st_size != size:
                    return None
        except OSError:
            return None
        return snapshot

    def check_path(self, model: Model) -> None:
        """
        Raises:
            ProvisionError: the configuration names a directory that does not exist.
        """
        if (local := local_path(model)) is not None and not local.exists():
            raise ProvisionError(
                f"cannot find the weights of {model.name}: {local} does not exist; correct source"
            )

    def commit(self, model: Model) -> str | None:
        """The commit of the hub that the recorded download has."""
        record = self._record(model)
        return None if record is None else str(record["commit"])

    def context_length(self, model: Model) -> int | None:
        """Tokens of context that the weights are made for; None where they are not here or do not say."""
        told = self._tell(model)
        return None if told is None else told.context_length

    def card(self, model: Model) -> Card | None:
        """What the model is for; None where its weights are not here."""
        told = self._tell(model)
        return None if told is None else told.card

    def _tell(self, model: Model) -> "Told | None":
        """What its config.json says; None where it is not here.

        An answer is kept until the record (of a hub id) or config.json (of a local directory) changes, so a
        call costs one stat. None is not kept: what is missing may come.
        """
        local = local_path(model)
        try:
            changed = (
                (self._record_file(model) if local is None else local / "config.json").stat().st_mtime_ns
            )
        except OSError:
            return None
        key = (model.source, model.revision, changed)
        kept_key, told = self._told.get(model.name, (None, None))
        if kept_key == key:
            return told
        record = self._record(model) if local is None else None
        directory = Path(record["snapshot"]) if record is not None else local
        told = None if directory is None else read_told(directory)
        if told is not None:
            self._told[model.name] = (key, told)
        return told

    async def fetch(self, model: Model, report: Report, *, renew: bool = False) -> Path:
        """The weights, downloaded if they are not there. Cancelling ends the download; finished files stay.

        A model without a revision stays at the commit first downloaded; `renew` asks the hub for its newest.

        Raises:
            ProvisionError: why they cannot be had.
        """
        self.check_path(model)
        renew = renew and model.revision is None and local_path(model) is None
        if not renew and (found := self.find(model)) is not None:
            return found
        try:
            async with locked(self._records / f".{model.name}.lock", report) as lock:
                if not renew and (found := self.find(model)) is not None:
                    return found
                revision = model.revision or (None if renew else self.commit(model))
                got = await self._download(model.source, revision, lock, report)
                self._write_record(model, got)
        except OSError as problem:
            raise ProvisionError(
                f"cannot download {model.source}: {problem}; check {self._records} and its disk",
                temporary=True,
            ) from problem
        if model.revision is None:
            log.info(
                "%s has no revision: it stays at commit %s of %s", model.name, got["commit"], model.source
            )
        return Path(got["snapshot"])

    def child_environ(self) -> dict[str, str]:
        """What a child process that talks to the hub may see, the token included. Reads the dotenv files."""
        environ = self._environ if self._folder is None else with_hub_token(self._folder, self._environ)
        environ = {name: value for name, value in environ.items() if _PASSED_ON.fullmatch(name)}
        environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        return environ

    async def _download(self, repo: str, revision: str | None, lock: int, report: Report) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "supervisord_llm.provision.fetch"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.child_environ(),
            start_new_session=True,
            pass_fds=(lock,),
            limit=_LINE_LIMIT,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        errors = asyncio.ensure_future(child.stderr.read())
        last: dict[str, Any] = {}
        try:
            asked = {"repo": repo, "revision": revision, "cache": str(self.hub)}
            child.stdin.write(json.dumps(asked).encode())
            child.stdin.close()
            async for line in child.stdout:
                last = json.loads(line)
                if "phase" in last:
                    report(Progress(last["phase"], last.get("fraction")))
            await child.wait()
        finally:
            if child.returncode is None:
                await _end(child)
            said = (await errors).decode(errors="replace").strip()
        if "snapshot" in last:
            return last
        if "error" in last:
            raise ProvisionError(last["error"], temporary=last["temporary"])
        raise ProvisionError(
            f"cannot download {repo}: the download ended with status {child.returncode} "
            f"({said[-500:] or 'it said nothing'}); try again",
            temporary=True,
        )

    # --- records ----------------------------------------------------

    def _record(self, model: Model) -> dict[str, Any] | None:
        """The record, if it is of this source and revision."""
        try:
            record = json.loads(self._record_file(model).read_bytes())
            same = record["source"] == model.source and record["revision"] == model.revision
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if same else None

    def _record_file(self, model: Model) -> Path:
        return self._records / f"{model.name}.json"

    def _write_record(self, model: Model, got: Mapping[str, Any]) -> None:
        record = {"source": model.source, "revision": model.revision, **got}
        partial = self._records / f".{model.name}.json"
        with partial.open("w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._record_file(model))


async def _end(child: asyncio.subprocess.Process) -> None:
    """SIGTERM, for it to remove what is unfinished; SIGKILL if it does not end soon, or we must."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), TERM_TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def local_path(model: Model) -> Path | None:
    """The directory (or single file) that a local `source` names; None for a hub id."""
    if model.source.startswith(("/", ".", "~")):
        return Path(model.source).expanduser().absolute()
    return None


@dataclass(frozen=True, slots=True)
class Told:
    """What a config.json says of its model."""

    context_length: int | None
    card: Card


def read_told(directory: Path) -> Told | None:
    """The context is max_position_embeddings; of the text part, where a model has several."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        length = config.get("text_config", config).get("max_position_embeddings")
        card = read_card(config, is_sentence_transformer=(directory / "modules.json").exists())
    except (OSError, ValueError, AttributeError):
        return None
    return Told(length if isinstance(length, int) else None, card)


def hub_cache(paths: Paths, environ: Mapping[str, str]) -> Path:
    """Where snapshots live: the cache that other Hugging Face tools use, if the environment names one."""
    if named := environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return paths.hub


def with_hub_token(folder: Path, environ: Mapping[str, str]) -> Mapping[str, str]:
    """`environ` with HF_TOKEN from the dotenv files of the configuration in `folder`, unless it has one."""
    if "HF_TOKEN" not in environ:
        for file in Keys(folder, environ).files:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if token := dotenv_values(file, interpolate=False).get("HF_TOKEN"):
                    return {**environ, "HF_TOKEN": token}
    return environ

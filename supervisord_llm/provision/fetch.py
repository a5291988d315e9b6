"""The child process that downloads a model: `python -m supervisord_llm.provision.fetch`.

A process of its own, because it can be killed to cancel it, and because its threads and memory do not belong
beside the relay. Reads one JSON object from stdin:

    {"repo": "org/name", "revision": "<commit, branch or tag>" | null, "cache": "<directory>"}

and writes JSON lines to stdout: {"phase": "downloading", "fraction": 0.43} any number of times, then one of

    {"commit": …, "snapshot": "<directory>", "files": {"config.json": 123, …}}
    {"error": "cannot …", "temporary": true | false}

HF_TOKEN, HF_ENDPOINT, proxies and the like come from its environment. A broken connection is resumed where it
broke. After SIGTERM the finished files stay for the next download and the unfinished ones are removed: the
hub's client gives each attempt a file of its own, so nothing could continue them.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.selection import has_weights, wanted
from supervisord_llm.provision.waiting import SIGN_S

UNFINISHED = ".incomplete"
"""The suffix that the hub's client gives to files in the making."""
SPARE_BYTES = 64 << 20
"""Left free on the disk by a download."""
TELL_S = 0.5
CHUNK_BYTES = 4 << 20
ABANDONED_S = 3600
"""An unfinished file that nobody wrote to for so long was left by a download that was killed."""


def tell(message: Mapping[str, Any]) -> None:
    """One line to the parent."""
    print(json.dumps(message), flush=True)  # noqa: T201 - stdout is the protocol


def main() -> None:
    """Download what stdin asks for."""
    signal.signal(signal.SIGTERM, _give_up)
    asked = json.load(sys.stdin)
    try:
        tell(fetch(asked["repo"], asked["revision"], Path(asked["cache"])))
    except ProvisionError as problem:
        tell({"error": str(problem), "temporary": problem.temporary})


def _give_up(*_: object) -> None:
    """Remove the unfinished files that this process has open, then end, without waiting for threads."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if (file := descriptor.readlink()).suffix == UNFINISHED:
                file.unlink()
    os._exit(128 + signal.SIGTERM)


def _remove_abandoned(blobs: Path) -> None:
    for file in blobs.glob(f"*{UNFINISHED}"):
        with contextlib.suppress(OSError):  # its owner may be quicker
            if time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()


def fetch(repo: str, revision: str | None, cache: Path) -> dict[str, Any]:
    """Download the files vLLM needs, verify them, and say where they are."""
    import huggingface_hub as hub  # here, so that importing this module is cheap

    with explained(repo, revision, cache):
        tell({"phase": "asking the model hub"})
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        files = {file.rfilename: file for file in info.siblings or ()}
        names = wanted(list(files))
        if not has_weights(names):
            raise ProvisionError(
                f"cannot use {repo}: it has no weights that vLLM loads (safetensors or PyTorch files); "
                "set source to a repository that has"
            )
        sizes = {name: int(files[name].size or 0) for name in names}
        missing = [name for name in names if not _is_cached(hub, repo, name, commit, cache)]
        blobs = cache / ("models--" + repo.replace("/", "--")) / "blobs"
        _remove_abandoned(blobs)
        _need_space(repo, sum(sizes[name] for name in missing), cache)
        with _progress(blobs, sizes, missing):
            snapshot = Path(
                hub.snapshot_download(
                    repo, revision=commit, allow_patterns=names, cache_dir=cache, max_workers=4
                )
            )
        digests = {name: lfs.sha256 if (lfs := files[name].lfs) else None for name in names}
        _verify(repo, snapshot, sizes, digests)
    return {"commit": commit, "snapshot": str(snapshot), "files": sizes}


def _is_cached(hub: Any, repo: str, name: str, commit: str, cache: Path) -> bool:
    return isinstance(hub.try_to_load_from_cache(repo, name, cache_dir=cache, revision=commit), str)


def _need_space(repo: str, needed: int, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed and needed + SPARE_BYTES > free:
        raise ProvisionError(
            f"cannot download {repo}: needs {_gib(needed)}, {_gib(free)} free on {cache}: "
            "free space or set [paths] state",
            temporary=True,
        )


@contextmanager
def _progress(blobs: Path, sizes: Mapping[str, int], missing: list[str]) -> Iterator[None]:
    """Tell how much has arrived, by looking at the cache: true for every way the hub's client downloads."""
    total = sum(sizes[name] for name in missing)

    def stored() -> int:
        try:
            return sum(entry.stat().st_size for entry in os.scandir(blobs))
        except OSError:
            return 0

    finished = threading.Event()
    before = stored()

    def watch() -> None:
        while not finished.wait(TELL_S):
            tell({"phase": "downloading", "fraction": round(min((stored() - before) / total, 1.0), 3)})

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    if total:
        tell({"phase": f"downloading {_gib(total)}", "fraction": 0.0})
        watcher.start()
    try:
        yield
    finally:
        finished.set()
        if total:
            watcher.join()


def _verify(repo: str, snapshot: Path, sizes: Mapping[str, int], digests: Mapping[str, str | None]) -> None:
    """Sizes, and the SHA-256 where the hub names one (large files), with progress; a broken file goes."""
    total = sum(sizes[name] for name, digest in digests.items() if digest) or 1
    done, told_at = 0, time.monotonic()
    tell({"phase": "verifying", "fraction": 0.0})
    for name, digest in digests.items():
        file = snapshot / name
        right = file.stat().st_size == sizes[name]
        if right and digest:
            hashed = hashlib.sha256()
            for chunk in _chunks(file):
                hashed.update(chunk)
                done += len(chunk)
                if time.monotonic() - told_at >= SIGN_S:
                    told_at = time.monotonic()
                    tell({"phase": "verifying", "fraction": round(done / total, 3)})
            right = hashed.hexdigest() == digest
        if not right:
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise ProvisionError(
                f"cannot use {name} of {repo}: its size or SHA-256 is not what the hub says; "
                "the broken file is removed, so try again",
                temporary=True,
            )


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def explained(repo: str, revision: str | None, cache: Path) -> Iterator[None]:
    """Whatever the hub's client raises, as one sentence with a way out."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except ProvisionError:
        raise
    except errors.OfflineModeIsEnabled as problem:
        raise ProvisionError(
            f"cannot download {repo}: HF_HUB_OFFLINE is set; unset it, or set source to a local directory"
        ) from problem
    except errors.GatedRepoError as problem:
        raise ProvisionError(
            f"cannot download {repo}: it is gated; accept its licence at {endpoint}/{repo} and set HF_TOKEN "
            "to a token of that account"
        ) from problem
    except errors.RevisionNotFoundError as problem:
        raise ProvisionError(f"cannot download {repo}{at}: no such revision; correct revision") from problem
    except errors.RepositoryNotFoundError as problem:
        raise ProvisionError(
            f"cannot download {repo}: no such repository at {endpoint}, or a private one; correct source, "
            "or set HF_TOKEN to a token that may read it"
        ) from problem
    except errors.HFValidationError as problem:
        raise ProvisionError(f"cannot download {repo}: not a hub id; correct source ({problem})") from problem
    except Exception as problem:
        raise _as_error(repo, endpoint, cache, problem) from problem


def _as_error(repo: str, endpoint: str, cache: Path, problem: BaseException) -> ProvisionError:
    said = (str(problem) or type(problem).__name__).splitlines()[0]
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProvisionError(
            f"cannot download {repo}: no space left on {cache} ({_gib(shutil.disk_usage(cache).free)} free): "
            "free space or set [paths] state",
            temporary=True,
        )
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status in (401, 403):
        return ProvisionError(
            f"cannot download {repo}: {endpoint} refuses access; accept its licence at {endpoint}/{repo} "
            "and set HF_TOKEN to a token of that account"
        )
    if isinstance(problem, PermissionError):
        return ProvisionError(f"cannot download {repo}: {said}; make {cache} writable for this user")
    return ProvisionError(
        f"cannot download {repo} from {endpoint} ({said}): check the network or HF_ENDPOINT and try again, "
        "or set source to a local directory",
        temporary=True,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 29 else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()

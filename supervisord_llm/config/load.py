"""Find the configuration, read it from disk and return it as a Config. The only I/O of this room."""

import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisord_llm.config.credentials import Keys, unread
from supervisord_llm.config.document import Document, Source, merge
from supervisord_llm.config.model import Config, Paths
from supervisord_llm.config.parse import Surroundings, parse
from supervisord_llm.config.positions import positions
from supervisord_llm.config.problem import Problem
from supervisord_llm.config.zone import local_zone
from supervisord_llm.errors import ConfigError

NAME = "llm-supervisor"
DEFAULT_FILE = Path("/etc") / NAME / "config.toml"
VARIABLE = "LLM_SUPERVISOR_CONFIG"
SYSTEM = Paths(state=Path("/var/lib") / NAME, cache=Path("/var/cache") / NAME, runtime=Path("/run") / NAME)

_ERROR_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ, *, keys: bool = True) -> Config:
    """Read the file that `config_file` finds and the `conf.d/*.toml` beside it.

    Without `keys` all keys are left unread: only the daemon lets anybody in or asks anybody else, and a
    systemd credential can be read by nobody else.

    Raises:
        ConfigError: with every problem of every file.
    """
    file = config_file(path, environ)
    document = read_documents(file)
    folder = file.parent
    paths, known = default_paths(environ), Keys(folder, environ)
    around = Surroundings(folder, paths, unread)
    if keys:
        around = Surroundings(folder, paths, known.digest, known.key)
    config = parse(document, replace(around, zone=local_zone(environ)))
    if isinstance(config, list):
        raise ConfigError(config)
    _guard(config.paths)
    return config


def config_file(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """`path`, else $LLM_SUPERVISOR_CONFIG, else /etc/llm-supervisor/config.toml; absolute."""
    return Path(path or environ.get(VARIABLE) or DEFAULT_FILE).absolute()


# --- files ----------------------------------------------------------


def read_documents(file: Path) -> Document:
    """The file and its drop-ins, merged.

    Raises:
        ConfigError: a file cannot be read, or is not TOML; values are not judged here.
    """
    problems: list[Problem] = []
    sources: list[Source] = []
    try:
        drop_ins = sorted((file.parent / "conf.d").glob("*.toml"))
    except OSError as error:
        drop_ins = []
        problems.append(Problem(file.parent / "conf.d", None, "", f"cannot list it: {error.strerror}"))
    for each in (file, *drop_ins):
        read = _read(each)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            sources.append(read)
    if problems:
        raise ConfigError(problems)
    return merge(sources)


def _read(file: Path) -> Source | Problem:
    try:
        text = file.read_text("utf-8-sig")  # an editor on Windows begins the file with a BOM
    except FileNotFoundError:
        return Problem(
            file, None, "", "cannot find it", hint=f"make it, or name another with --config or ${VARIABLE}"
        )
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return Problem(file, line, "", "cannot read it: it is not UTF-8", hint="save it as UTF-8")
    except OSError as error:
        return Problem(
            file, None, "", f"cannot read it: {error.strerror}", hint="make it readable for this user"
        )
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return _not_toml(file, text, str(error))
    return Source(file, values, positions(text))


def _not_toml(file: Path, text: str, message: str) -> Problem:
    place = _ERROR_PLACE.search(message)
    last = max(1, len(text.rstrip().splitlines()))
    line = (int(place[1]) if place[1] else last) if place else None
    reason = _ERROR_PLACE.sub("", message)
    return Problem(
        file, line, "", f"cannot read it as TOML: {reason}", hint="correct this line (strings need quotes)"
    )


# --- places ----------------------------------------------------------


def default_paths(environ: Mapping[str, str]) -> Paths:
    """systemd's directories, else /var and /run for root and the service's user, else XDG's."""
    if os.geteuid() == 0 or _is_ours(SYSTEM.state):
        fallback = SYSTEM
    else:
        home = Path(environ.get("HOME") or Path.home())
        runtime = environ.get("XDG_RUNTIME_DIR")
        fallback = Paths(
            state=_absolute(environ.get("XDG_STATE_HOME"), home / ".local" / "state") / NAME,
            cache=_absolute(environ.get("XDG_CACHE_HOME"), home / ".cache") / NAME,
            runtime=Path(runtime) / NAME if runtime else _shared_runtime(),
        )
    return Paths(
        state=_systemd(environ, "STATE_DIRECTORY") or fallback.state,
        cache=_systemd(environ, "CACHE_DIRECTORY") or fallback.cache,
        runtime=_systemd(environ, "RUNTIME_DIRECTORY") or fallback.runtime,
    )


def _is_ours(state: Path) -> bool:
    """Whether we are the service's user, for whom the installer made it."""
    try:
        return state.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _systemd(environ: Mapping[str, str], variable: str) -> Path | None:
    first = environ.get(variable, "").split(":")[0]  # a unit with several directories has them all here
    return Path(first) if first else None


def _absolute(value: str | None, fallback: Path) -> Path:
    """XDG says that relative values are to be ignored."""
    return Path(value) if value and Path(value).is_absolute() else fallback


def _shared_runtime() -> Path:
    return Path(tempfile.gettempdir()) / f"{NAME}-{os.geteuid()}"


def _guard(paths: Paths) -> None:
    """A directory under /tmp is only ours if we made it: who made it first would own our control socket."""
    runtime = paths.runtime
    if runtime != _shared_runtime():
        return
    try:
        runtime.mkdir(mode=0o700, exist_ok=True)
        found = runtime.lstat()
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return
        reason = "it belongs to others too"
    hint = "set $XDG_RUNTIME_DIR or paths.runtime"
    raise ConfigError([Problem(None, None, "paths.runtime", f"cannot use {runtime}: {reason}", hint=hint)])

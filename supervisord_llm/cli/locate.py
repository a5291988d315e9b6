"""Where the daemon is: its control socket.

Loading the configuration would tell, but costs more than the whole of `status`; and unlike a load this must
work while a file is wrong (`reload` says what is wrong) or not readable for this user. A test holds the two
together.
"""

import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from supervisord_llm.cli.client import Client

NAME = "llm-supervisor"
SYSTEM_CONFIG = Path("/etc") / NAME / "config.toml"
SYSTEM_RUNTIME = Path("/run") / NAME
SYSTEM_STATE = Path("/var/lib") / NAME


def daemon_of(config: Path | None) -> Client:
    """The daemon that serves `config`. Where it can only be guessed where that is, stderr gets a line."""
    path = control_socket(config)
    if (wrong := not_toml(config)) is not None:
        why = f"cannot tell [paths]: {wrong} is not TOML, and `llm-supervisor check` says where"
        print(f"{why}; asks the daemon at {path}", file=sys.stderr)
    return Client(path)


def control_socket(config: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The control socket of the daemon that serves `config`; it need not exist."""
    file = _file(config, environ)
    configured, _ = _configured(file)
    own = (configured or _default(environ)) / "control.sock"
    system = SYSTEM_RUNTIME / "control.sock"
    # The system's daemon runs as another user, whose defaults are not ours.
    return system if file == SYSTEM_CONFIG and not own.exists() and configured is None else own


def not_toml(config: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file whose mistakes hide where the daemon is; None where that is known."""
    configured, wrong = _configured(_file(config, environ))
    return wrong if configured is None else None


def _file(config: Path | None, environ: Mapping[str, str]) -> Path:
    return Path(config or environ.get("LLM_SUPERVISOR_CONFIG") or SYSTEM_CONFIG).absolute()


def _configured(file: Path) -> tuple[Path | None, Path | None]:
    """[paths].runtime as the last of the files says it, and the last file that is not TOML.

    Files that this user may not read say nothing.
    """
    found: Path | None = None
    wrong: Path | None = None
    for each in (file, *_drop_ins(file.parent / "conf.d")):
        try:
            values = tomllib.loads(each.read_text("utf-8-sig"))
        except OSError:
            continue
        except ValueError:
            wrong = each
            continue
        paths = values.get("paths")
        runtime = paths.get("runtime") if isinstance(paths, dict) else None
        if isinstance(runtime, str) and runtime:
            found = file.parent / runtime
    return found, wrong


def _drop_ins(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.toml"))
    except OSError:
        return []


def _default(environ: Mapping[str, str]) -> Path:
    """$RUNTIME_DIRECTORY, else /run for root and the service's user, else XDG's."""
    if given := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(given)
    if os.geteuid() == 0 or _is_ours(SYSTEM_STATE):
        return SYSTEM_RUNTIME
    if xdg := environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / NAME
    return Path(tempfile.gettempdir()) / f"{NAME}-{os.geteuid()}"


def _is_ours(state: Path) -> bool:
    try:
        return state.stat().st_uid == os.geteuid()
    except OSError:
        return False

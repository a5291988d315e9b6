"""Where the daemon's control socket is.

Loading the configuration would tell, but costs more than the whole of `status`; and unlike a load this must
work while a file is wrong (`reload` says what is wrong) or not readable for this user. A test holds the two
together.
"""

import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

NAME = "llm-supervisor"
SYSTEM_CONFIG = Path("/etc") / NAME / "config.toml"
SYSTEM_RUNTIME = Path("/run") / NAME
SYSTEM_STATE = Path("/var/lib") / NAME


def control_socket(config: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The control socket of the daemon that serves `config`; it need not exist."""
    file = Path(config or environ.get("LLM_SUPERVISOR_CONFIG") or SYSTEM_CONFIG).absolute()
    own = (_configured(file) or _default(environ)) / "control.sock"
    system = SYSTEM_RUNTIME / "control.sock"
    # The system's daemon runs as another user, whose defaults are not ours.
    return system if file == SYSTEM_CONFIG and not own.exists() and _configured(file) is None else own


def _configured(file: Path) -> Path | None:
    """[paths].runtime as the last of the files says it; files that cannot be read say nothing."""
    found: Path | None = None
    for each in (file, *_drop_ins(file.parent / "conf.d")):
        try:
            values = tomllib.loads(each.read_text("utf-8-sig"))
        except (OSError, ValueError):
            continue
        paths = values.get("paths")
        runtime = paths.get("runtime") if isinstance(paths, dict) else None
        if isinstance(runtime, str) and runtime:
            found = file.parent / runtime
    return found


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

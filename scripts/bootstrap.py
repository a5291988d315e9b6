"""Make `.venv` with the project and its dependencies in it; say nothing and do nothing when it is there.

Runs on a bare python3 >= 3.11 (no pip, no ensurepip): standard library only. Safe to interrupt: what uv has
downloaded is in its cache, and the stamp that makes the next run a no-op is written last.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / "llm-supervisor.stamp"
NEEDED_BYTES = 1 << 30

sys.path.insert(0, str(ROOT))

from supervisord_llm.errors import ProvisionError  # noqa: E402 - the checkout is not installed yet
from supervisord_llm.provision import pip_config, uv_wheel  # noqa: E402


def main() -> int:
    """Exit code 0 when `.venv` is ready, 1 when it cannot be."""
    arguments = argparse.ArgumentParser(description="Make .venv with the project in it.")
    arguments.add_argument("--extra", action="append", default=[], help="optional dependencies, such as test")
    extras = set(arguments.parse_args().extra)
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # two runs at once take turns
        have = stamped_extras()
        if have is None or not extras <= have:
            set_up(extras | (have or set()))
    except ProvisionError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to resume", file=sys.stderr)
        return 130
    finally:
        os.close(directory)
    return 0


def fingerprint() -> str:
    """What `.venv` depends on: the project's requirements, where the checkout is, and the interpreter."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    digest.update(f"{ROOT}\n{PYTHON.resolve()}".encode())
    return digest.hexdigest()


def stamped_extras() -> set[str] | None:
    """The extras that a finished, still valid `.venv` has; None when there is no such `.venv`."""
    try:
        stamp = json.loads(STAMP.read_text())
        if stamp["fingerprint"] == fingerprint() and PYTHON.exists():
            return set(stamp["extras"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def set_up(extras: set[str]) -> None:
    """Create or complete `.venv`."""
    if not os.access(ROOT, os.W_OK):
        raise ProvisionError(
            f"cannot set up in {ROOT}: it is not writable; run as its owner, or clone it anew"
        )
    if (free := shutil.disk_usage(ROOT).free) < NEEDED_BYTES:
        raise ProvisionError(
            f"cannot set up in {ROOT}: {free / 2**30:.1f} GiB are free and 1 GiB is needed; free some space"
        )
    pip = pip_config.read()
    print(f"setting up {VENV}", flush=True)
    if not python_works():
        venv.create(VENV, clear=True, symlinks=True)
    with tempfile.TemporaryDirectory(prefix=".uv-", dir=VENV) as directory:
        uv = find_uv(pip, Path(directory))
        environ = os.environ | pip_config.uv_environment(pip, os.environ)
        if not os.access(Path("~").expanduser(), os.W_OK):  # a service user without a home
            environ.setdefault("UV_CACHE_DIR", str(Path(directory) / "cache"))
        project = f".[{','.join(sorted(extras))}]" if extras else "."
        command = [str(uv), "pip", "install", "--python", str(PYTHON), "--editable", project]
        done = subprocess.run([*command, *pip_config.uv_arguments(pip)], cwd=ROOT, env=environ, check=False)
    if done.returncode != 0:
        raise ProvisionError(
            "cannot install the project's dependencies (uv says why above): check the network and the "
            "package index of pip's configuration, then run it again; it resumes"
        )
    STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "extras": sorted(extras)}))


def python_works() -> bool:
    """Whether `.venv` has an interpreter that starts and is new enough."""
    code = "import sys; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)"
    try:
        return subprocess.run([PYTHON, "-c", code], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def find_uv(pip: pip_config.PipConfig, into: Path) -> Path:
    """uv from `.venv`, from PATH, or from the package index."""
    for candidate in (str(VENV / "bin/uv"), shutil.which("uv")):
        if candidate and shutil.which(candidate):
            return Path(candidate)
    print("getting uv", flush=True)
    return uv_wheel.fetch_uv(pip, into)


if __name__ == "__main__":
    sys.exit(main())

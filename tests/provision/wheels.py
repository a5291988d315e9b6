"""Small packages made on the spot, so that real uv installs them without a network."""

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from supervisord_llm.config.model import Model, Paths, Venv
from supervisord_llm.runtime.ports import Progress

MODULE = '''
"""A package that stands for vLLM: it has the command."""

def main():
    print("engine of", __file__)
'''


def make_wheel(
    directory: Path,
    name: str = "tiny-engine",
    version: str = "1.0",
    *,
    command: str | None = "vllm",
    payload_bytes: int = 0,
    code: str = MODULE,
) -> Path:
    """A wheel whose module is `code`, by default one that prints its own path; `command` calls its main."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": code.encode(),
        f"{module}/payload": os.urandom(payload_bytes),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if command is not None:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{command} = {module}:main\n".encode()
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def make_paths(root: Path) -> Paths:
    """Directories of one daemon."""
    return Paths(state=root / "state", cache=root / "cache", runtime=root / "run")


def model(name: str = "chat", *, source: str = "/models/x", venv: Venv | None = None) -> Model:
    """A model of which only these matter here."""
    return Model(name=name, source=source, venv=venv, flags={}, env={})


def environ(**extra: str) -> dict[str, str]:
    """Our environment without what this machine says about packages: no index, so no network."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "UV_", "HF_", "HUGGING_FACE"))
    }
    return own | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"} | extra


class Reports(list[Progress]):
    """A Report that remembers."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)

    @property
    def phases(self) -> list[str]:
        return [progress.phase for progress in self]

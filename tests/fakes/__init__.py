"""Stand-ins for what the tests cannot have: an engine that misbehaves by name, and weights for it."""

import sys
from pathlib import Path

from tests.fakes.weights import make_adapter, make_weights

__all__ = ["install_fake_vllm", "make_adapter", "make_weights"]


def install_fake_vllm(venv: Path) -> Path:
    """Put the fake at `<venv>/bin/vllm`, run by this Python without site-packages; returns that path."""
    body = (Path(__file__).parent / "fake_vllm.py").read_text().partition("\n")[2]
    program = venv / "bin" / "vllm"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!{sys.executable} -IS\n{body}")
    program.chmod(0o755)
    return program

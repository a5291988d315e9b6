"""A libnvidia-ml.so.1 of two GPUs, compiled on the spot and loaded by the real nvidia-ml-py."""

import shutil
import subprocess
from pathlib import Path

import pytest


def compile_stub(directory: Path) -> Path:
    """The library's path; its folder belongs in LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stub NVML with")
    library = directory / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("stub_nvml.c")
    arguments = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(source)]
    subprocess.run([compiler, *arguments], check=True)
    return library

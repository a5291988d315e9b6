"""The sensor against a real shared library, loaded by the real nvidia-ml-py in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisord_llm.gpu import sensor
from supervisord_llm.gpu.sensor import GpuReading, GpuSeen
from tests.gpu.nvml import compile_stub

GIB = 1024**3
READ_AND_PRINT = "from supervisord_llm.gpu.sensor import *; print(repr(read_gpus()))"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled libnvidia-ml.so.1."""
    return compile_stub(tmp_path_factory.mktemp("nvml"))


def read(library: Path, mode: str = "", program: str = READ_AND_PRINT) -> tuple[GpuReading, bool]:
    """What a child that finds `library` reads, and whether it shut NVML down."""
    environ = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "STUB_NVML": mode}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    *before, last = done.stdout.splitlines()
    reading = eval(last, {"GpuReading": GpuReading, "GpuSeen": GpuSeen})
    assert isinstance(reading, GpuReading)
    return reading, before == ["shutdown"]


def test_two_gpus_are_read_and_nvml_is_shut_down(stub: Path) -> None:
    reading, shut_down = read(stub)
    assert reading == GpuReading(
        (
            GpuSeen(index=0, uuid="GPU-aaaa", name="Stub 0", total_bytes=24 * GIB, free_bytes=20 * GIB),
            GpuSeen(index=1, uuid="GPU-bbbb", name="Stub 1", total_bytes=8 * GIB, free_bytes=8 * GIB),
        )
    )
    assert reading.absence == ""
    assert shut_down


def test_a_driver_that_is_not_loaded_is_a_sentence(stub: Path) -> None:
    reading, _ = read(stub, "init-fails")
    assert reading.gpus == ()
    assert reading.absence.startswith("cannot use the NVIDIA driver: Driver Not Loaded")


def test_a_count_that_fails_is_a_sentence_and_nvml_is_shut_down(stub: Path) -> None:
    reading, shut_down = read(stub, "count-fails")
    assert reading.absence == "cannot count the GPUs: Unknown Error"
    assert shut_down


def test_a_lost_gpu_does_not_hide_the_other(stub: Path) -> None:
    reading, shut_down = read(stub, "gpu1-lost")
    assert [gpu.index for gpu in reading.gpus] == [0]
    assert reading.problems == ("cannot read GPU 1: GPU is lost",)
    assert shut_down


def test_memory_that_is_not_told_is_unknown_and_not_zero(stub: Path) -> None:
    reading, _ = read(stub, "no-memory")
    assert [(gpu.total_bytes, gpu.free_bytes) for gpu in reading.gpus] == [(None, None)] * 2


def test_the_library_of_wsl_is_found_without_a_loader_path(stub: Path, tmp_path: Path) -> None:
    moved = tmp_path / "wsl" / "libnvidia-ml.so.1"
    moved.parent.mkdir()
    shutil.copy(stub, moved)
    program = (
        "from pathlib import Path; from supervisord_llm.gpu import sensor\n"
        f"sensor.WSL_LIBRARY = Path({str(moved)!r})\n"
        "import pynvml\n"
        "def bare_name_only(name, mode=0, load=pynvml.CDLL, seen=[]):\n"
        "    seen.append(name)\n"
        "    if len(seen) == 1: raise OSError(name)\n"
        "    return load(name)\n"
        "pynvml.CDLL = bare_name_only  # a host with a driver of its own fails the first time as well\n"
        "print(repr(sensor.read_gpus()))"
    )
    reading, _ = read(tmp_path / "nothing.so", program=program)
    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-aaaa", "GPU-bbbb"]


def test_a_broken_library_counts_as_no_driver(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_text("not a library")
    program = f"from supervisord_llm.gpu import sensor; sensor.WSL_LIBRARY = sensor.Path({str(broken)!r})\n"
    # Hide a real driver of the host: the loader's bare-name search is what fails on a host without one.
    program += "import pynvml, ctypes\ndef none(*a, **k): raise OSError('none')\npynvml.CDLL = none\n"
    reading, _ = read(broken, program=program + "print(repr(sensor.read_gpus()))")
    assert reading == GpuReading(problems=(sensor.NO_DRIVER,))
    assert reading.absence == sensor.NO_DRIVER

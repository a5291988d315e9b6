"""Reads the host's GPUs from NVML.

NVML may be missing, partial (WSL2) or lose a card while we look. Each of these is a sentence in the reading,
never an exception, and a figure that cannot be learnt is None, never 0: 0 bytes free is a fact about a full
card, and would be acted on.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

WSL_LIBRARY = Path("/usr/lib/wsl/lib/libnvidia-ml.so.1")
"""Where Windows' driver puts NVML; a systemd service on WSL2 may have no loader path to it."""

NO_DRIVER = "no NVIDIA driver: libnvidia-ml.so.1 not found"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """One GPU as NVML describes it. `index` is in PCI bus order, as with CUDA_DEVICE_ORDER=PCI_BUS_ID."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The GPUs that answered, and one sentence for each thing that did not."""

    gpus: tuple[GpuSeen, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def absence(self) -> str:
        """Why there is no GPU, in one sentence; "" where there is one."""
        if self.gpus:
            return ""
        return self.problems[0] if self.problems else "the NVIDIA driver runs and finds no GPU"


def read_gpus() -> GpuReading:
    """Ask NVML once. Takes milliseconds, or as long as a broken driver hangs: call it in a thread."""
    import pynvml  # not at import time: most commands never look at a GPU

    try:
        _init(pynvml)
    except pynvml.NVMLError_LibraryNotFound:
        return GpuReading(problems=(NO_DRIVER,))
    except pynvml.NVMLError as error:
        return GpuReading(problems=(f"cannot use the NVIDIA driver: {error}; `nvidia-smi` may tell more",))
    try:
        return _read(pynvml)
    finally:
        _or_none(pynvml, pynvml.nvmlShutdown)


def _init(nvml: Any) -> None:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        if not WSL_LIBRARY.exists():
            raise
        # nvidia-ml-py loads by bare name, and the loader takes a loaded library of that SONAME for it.
        try:
            ctypes.CDLL(str(WSL_LIBRARY), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise nvml.NVMLError_LibraryNotFound from error
        nvml.nvmlInit()


def _read(nvml: Any) -> GpuReading:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return GpuReading(problems=(f"cannot count the GPUs: {error}",))
    gpus: list[GpuSeen] = []
    problems: list[str] = []
    for index in range(count):
        try:
            gpus.append(_read_gpu(nvml, index))
        except nvml.NVMLError as error:
            problems.append(f"cannot read GPU {index}: {error}")
    return GpuReading(tuple(gpus), tuple(problems))


def _read_gpu(nvml: Any, index: int) -> GpuSeen:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _or_none(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return GpuSeen(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=_or_none(nvml, lambda: str(nvml.nvmlDeviceGetName(handle))) or "NVIDIA GPU",
        total_bytes=memory.total if memory else None,
        free_bytes=memory.free if memory else None,
    )


def _or_none(nvml: Any, ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except nvml.NVMLError:
        return None

"""Reads the host's GPUs from NVML.

NVML may be missing, partial (WSL2) or lose a card while we look. Each of these is a sentence in the reading,
never an exception, and a figure that cannot be learnt is None, never 0: 0 bytes free is a fact about a full
card, and would be acted on.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

WSL_LIBRARY = Path("/usr/lib/wsl/lib/libnvidia-ml.so.1")
"""Where Windows' driver puts NVML; a systemd service on WSL2 may have no loader path to it."""

WSL_DEVICE = Path("/dev/dxg")
"""Where it is, Windows manages the GPU's memory, and no process list can be trusted: an empty one, too."""

NO_DRIVER = "no NVIDIA driver: libnvidia-ml.so.1 not found"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """What one process holds of one GPU. `pid` is of the driver's pid namespace: the host's."""

    pid: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """One GPU as NVML describes it. `index` is in PCI bus order, as with CUDA_DEVICE_ORDER=PCI_BUS_ID."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    processes: tuple[GpuProcess, ...] | None = None
    """In pid order; None where the driver does not tell them, or not what each one holds (WSL2)."""
    utilization: float | None = None
    """Of 1: the share of the last moments in which a kernel ran."""
    temperature_c: int | None = None

    @property
    def used_bytes(self) -> int | None:
        """What is not free: processes, and what the driver keeps for itself."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLost:
    """A GPU that the driver counts and cannot read. `uuid` is "" where it was never learnt."""

    index: int
    uuid: str
    why: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The GPUs that answered, one sentence for each thing that did not, and the GPUs that did not answer."""

    gpus: tuple[GpuSeen, ...] = ()
    problems: tuple[str, ...] = ()
    lost: tuple[GpuLost, ...] = ()

    @property
    def absence(self) -> str:
        """Why there is no GPU, in one sentence; "" where there is one."""
        if self.gpus:
            return ""
        return self.problems[0] if self.problems else "the NVIDIA driver runs and finds no GPU"

    @property
    def unknown(self) -> str:
        """Why it cannot be told which GPUs can be used, in one sentence; "" where it can.

        Without the driver's library, or with a driver that finds none, there is none: that is known.
        """
        if any(gpu.total_bytes is not None for gpu in self.gpus) or self.problems == (NO_DRIVER,):
            return ""
        if self.gpus:
            return f"GPU {self.gpus[0].index} ({self.gpus[0].name}) does not tell its memory size"
        return self.problems[0] if self.problems else ""

    @property
    def may_have_gpus(self) -> bool:
        """Whether this host has a GPU, or may have one that does not answer."""
        return bool(self.gpus or self.unknown)

    @property
    def failure(self) -> str:
        """Why NVML as a whole tells nothing, in one sentence; "" where it tells anything."""
        return self.absence if self.problems and not self.gpus and not self.lost else ""

    def joined(self, fresh: "GpuReading") -> "GpuReading":
        """What is known once `fresh` came later: cards join, and none leaves or changes its index.

        One that does not answer any more is lost, not gone: engines may be on it.
        """
        if not self.gpus:
            return fresh
        if fresh.failure:
            return self
        seen = {gpu.uuid: gpu for gpu in fresh.gpus}
        gpus = {gpu.index: replace(seen.pop(gpu.uuid, gpu), index=gpu.index) for gpu in self.gpus}
        problems = list(fresh.problems)
        for gpu in seen.values():
            known = gpus.setdefault(gpu.index, gpu)
            if known is not gpu:
                problems.append(
                    f"GPU {gpu.uuid} came to the place of GPU {gpu.index} ({known.uuid}) and is left out; "
                    f"restart the daemon to use it"
                )
        lost = tuple(each for each in fresh.lost if each.index not in gpus)
        return GpuReading(tuple(gpus[index] for index in sorted(gpus)), tuple(problems), lost)


def read_gpus() -> GpuReading:
    """Ask NVML once, in this process. Takes milliseconds, or as long as a broken driver hangs."""
    sensor = Sensor()
    try:
        return sensor.read()
    finally:
        sensor.close()


class Sensor:
    """NVML, initialised at the first look and kept so: later looks take milliseconds at most.

    A card that was lost and came back is seen by a new process only: the driver's library remembers.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._uuids: dict[int, str] = {}
        """By index; indices do not move while NVML is initialised."""

    def read(self) -> GpuReading:
        """Look at every GPU. Blocks for as long as the driver does."""
        import pynvml  # not at import time: most commands never look at a GPU

        if self._nvml is None:
            try:
                _init(pynvml)
            except pynvml.NVMLError_LibraryNotFound:
                return GpuReading(problems=(NO_DRIVER,))
            except pynvml.NVMLError as error:
                sentence = f"cannot use the NVIDIA driver: {error}; `nvidia-smi` may tell more"
                return GpuReading(problems=(sentence,))
            self._nvml = pynvml
        return self._read(pynvml)

    def close(self) -> None:
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _read(self, nvml: Any) -> GpuReading:
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            return GpuReading(problems=(f"cannot count the GPUs: {error}",))
        gpus: list[GpuSeen] = []
        lost: list[GpuLost] = []
        problems: list[str] = []
        for index in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._uuids[index] = nvml.nvmlDeviceGetUUID(handle)
                gpus.append(_read_gpu(nvml, index, self._uuids[index], handle))
            except nvml.NVMLError as error:
                why = _why_lost(nvml, index, error)
                lost.append(GpuLost(index=index, uuid=self._uuids.get(index, ""), why=why))
                problems.append(f"cannot read GPU {index}: {why}")
            else:
                if _has_mig(nvml, handle):
                    problems.append(
                        f"GPU {index} is divided by MIG, which is not supported: an engine there gets one "
                        f"part at most; undo it with `nvidia-smi -i {index} -mig 0`"
                    )
        return GpuReading(tuple(gpus), tuple(problems), tuple(lost))


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


def _read_gpu(nvml: Any, index: int, uuid: str, handle: Any) -> GpuSeen:
    """
    Raises:
        NVMLError: the card is lost.
    """
    memory = _or_none(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle), is_vital=True)
    return GpuSeen(
        index=index,
        uuid=uuid,
        name=_or_none(nvml, lambda: str(nvml.nvmlDeviceGetName(handle))) or "NVIDIA GPU",
        total_bytes=memory.total if memory else None,
        free_bytes=memory.free if memory else None,
        processes=_processes(nvml, handle),
        utilization=_or_none(nvml, lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)),
        temperature_c=_temperature(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    if WSL_DEVICE.exists():
        return None
    compute = _listed(nvml, "Compute", handle)
    if compute is None:
        return None
    held: dict[int, int] = {}
    for process in (*compute, *(_listed(nvml, "Graphics", handle) or ())):
        if process.usedGpuMemory is None:
            return None
        # A process that computes and draws is in both lists, each time with all that it holds.
        held[process.pid] = max(process.usedGpuMemory, held.get(process.pid, 0))
    return tuple(GpuProcess(pid=pid, used_bytes=held[pid]) for pid in sorted(held))


def _listed(nvml: Any, kind: str, handle: Any) -> list[Any] | None:
    # By version: the names without one raise something that is no NVMLError with drivers before 510.
    newest = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v3")
    older = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v2")

    def ask() -> list[Any]:
        try:
            return list(newest(handle))
        except nvml.NVMLError_FunctionNotFound:
            return list(older(handle))

    return _or_none(nvml, ask)


def _temperature(nvml: Any, handle: Any) -> int | None:
    sensor = nvml.NVML_TEMPERATURE_GPU
    told = _or_none(nvml, lambda: int(nvml.nvmlDeviceGetTemperatureV(handle, sensor)))
    if told is None:  # a driver before 570
        told = _or_none(nvml, lambda: int(nvml.nvmlDeviceGetTemperature(handle, sensor)))
    return told


def _has_mig(nvml: Any, handle: Any) -> bool:
    mode = _or_none(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _why_lost(nvml: Any, index: int, error: Any) -> str:
    if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
        return "it fell off the bus; look for Xid in `dmesg`, and reboot"
    if error.value == nvml.NVML_ERROR_RESET_REQUIRED:
        return f"it needs a reset: `nvidia-smi -i {index} --gpu-reset`, or reboot"
    return f"the driver says {str(error).rstrip('.')}; `dmesg` may tell more"


def _or_none(nvml: Any, ask: Callable[[], T], *, is_vital: bool = False) -> T | None:
    """The answer, or None where it cannot be learnt. What is vital is known of every card that works.

    Raises:
        NVMLError: the card is lost.
    """
    try:
        return ask()
    except nvml.NVMLError as error:
        gone = {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_GPU_NOT_FOUND}
        if error.value in gone or (is_vital and error.value == nvml.NVML_ERROR_UNKNOWN):
            raise
        return None

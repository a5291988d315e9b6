"""The NVIDIA driver, its devices, and whether the daemon's user may open them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from supervisord_llm.cli.diagnosis.access import READ, WRITE, Node, User, may
from supervisord_llm.cli.diagnosis.finding import Finding
from supervisord_llm.cli.render import size
from supervisord_llm.gpu.sensor import NO_DRIVER, GpuReading

CONTROL, UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
MAKE_UVM = "sudo nvidia-modprobe -u -c 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What there is of the driver."""

    reading: GpuReading
    user: User
    has_card: bool = True
    """Whether an NVIDIA card is on the bus."""
    module: str = ""
    """The version of the loaded kernel module; "" where none is loaded."""
    is_wsl: bool = False
    nodes: Mapping[str, Node] = field(default_factory=dict)
    """The devices that exist, by path."""
    makes_nodes: bool = False
    """Whether nvidia-modprobe is there, which makes devices as they are needed."""
    is_persistent: bool | None = None
    """Whether every card is in persistence mode; None where nvidia-smi does not tell."""


def findings(driver: Driver) -> Iterator[Finding]:
    """Of the driver as a whole, then of each card, then of the devices."""
    reading = driver.reading
    if not reading.gpus and not reading.lost:
        yield _without(driver)
        return
    for gpu in reading.gpus:
        total = "memory unknown" if gpu.total_bytes is None else size(gpu.total_bytes)
        version = f", driver {driver.module}" if driver.module else ""
        yield Finding("ok", f"GPU {gpu.index}", f"{gpu.name}, {total}{version}")
    for lost in reading.lost:
        yield Finding("problem", f"GPU {lost.index}", f"is lost: {lost.why}")
    lost_too = tuple(f"cannot read GPU {lost.index}:" for lost in reading.lost)
    for problem in reading.problems:
        if not problem.startswith(lost_too):
            yield Finding("warning", "driver", problem)
    yield from _devices(driver)
    if driver.is_persistent is False:
        text = "is off: the driver is unloaded whenever nothing uses the GPU, and loading it takes seconds"
        mend = "`sudo systemctl enable --now nvidia-persistenced`, or `sudo nvidia-smi -pm 1` until reboot"
        yield Finding("warning", "persistence", text, mend)


def _without(driver: Driver) -> Finding:
    """No GPU that can be used: for want of one, or why."""
    reading = driver.reading
    if reading.problems == (NO_DRIVER,):
        if driver.module:
            mend = f"`sudo ldconfig`, or install libnvidia-ml1 (Ubuntu: nvidia-utils) of {driver.module}"
            text = f"the kernel has driver {driver.module}, but its library libnvidia-ml.so.1 is not found"
            return Finding("problem", "driver", text, mend)
        if driver.has_card:
            mend = "`sudo ubuntu-drivers install` (Debian: `sudo apt install nvidia-driver`), and reboot"
            text = "an NVIDIA card is there, but its driver is not: engines run on the CPU"
            return Finding("problem", "driver", text, mend)
        return Finding("ok", "GPU", "none: engines run on the CPU")
    if not reading.problems:
        return Finding("ok", "GPU", f"{reading.absence}: engines run on the CPU")
    return Finding("problem", "driver", reading.problems[0], _way_out(driver))


def _way_out(driver: Driver) -> str:
    """For a driver that does not answer, by what NVML calls it."""
    why = driver.reading.problems[0].lower()
    if "version mismatch" in why:
        return "it was upgraded while it was in use: `sudo reboot`"
    if driver.is_wsl:
        return "`wsl --update` and `wsl --shutdown` in PowerShell, and a new NVIDIA driver for Windows"
    if "driver not loaded" in why or not driver.module:
        return "`sudo modprobe nvidia`; if that fails, `dkms status` and `sudo dmesg | grep -i nvidia`"
    if "insufficient permissions" in why:
        return f"`sudo usermod -aG video {driver.user.name}`, and start it anew"
    return "`sudo dmesg | grep -iE 'xid|nvrm'` may say why; a reboot mends most of it"


def _devices(driver: Driver) -> Iterator[Finding]:
    if driver.is_wsl:
        wanted: tuple[str, ...] = ("/dev/dxg",)
    else:
        wanted = (CONTROL, UVM)
    missing = [path for path in wanted if path not in driver.nodes]
    for path in missing:
        if path == UVM and driver.makes_nodes:
            text = f"{UVM} is not there yet: it is made when CUDA first needs it"
            yield Finding("ok", "devices", text, f"if an engine does not find the GPU: `{MAKE_UVM}`")
        elif path == UVM:
            text = f"{UVM} is not there, without which CUDA does not start"
            yield Finding(
                "problem", "devices", text, f"`sudo apt install nvidia-modprobe`, then `{MAKE_UVM}`"
            )
        else:
            yield Finding("problem", "devices", f"{path} is not there", f"`{MAKE_UVM}`, or reboot")
    closed = {path: node for path, node in driver.nodes.items() if not may(driver.user, node, READ | WRITE)}
    for path, node in closed.items():
        group = node.group if node.group not in ("", "root") else "video"
        mend = f"`sudo usermod -aG {group} {driver.user.name}`, and start it anew"
        yield Finding("problem", "devices", f"{driver.user.name} may not open {path} ({node})", mend)
    if driver.nodes and not missing and not closed:
        yield Finding("ok", "devices", f"{driver.user.name} may open {', '.join(sorted(driver.nodes))}")

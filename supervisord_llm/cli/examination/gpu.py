"""What there is of the NVIDIA driver, without a call into it but by children with a time limit."""

import grp
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from supervisord_llm.cli.diagnosis.access import Node, User
from supervisord_llm.cli.diagnosis.gpu import CONTROL, UVM, Driver
from supervisord_llm.cli.examination.limit import PATH, NotTold, output, text
from supervisord_llm.gpu.sensor import WSL_DEVICE, GpuReading

NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor, and the first byte of the class, of a card on the PCI bus."""


def see_driver(reading: GpuReading, user: User, *, is_wsl: bool) -> Driver:
    """`reading` is what NVML told."""
    paths = [WSL_DEVICE] if is_wsl else [Path(CONTROL), Path(UVM), *Path("/dev").glob("nvidia[0-9]*")]
    nodes = {str(path): node for path in paths if (node := node_of(path)) is not None}
    return Driver(
        reading=reading,
        user=user,
        has_card=_has_card(),
        module=text("/sys/module/nvidia/version").strip(),
        is_wsl=is_wsl,
        nodes=nodes,
        makes_nodes=shutil.which("nvidia-modprobe", path=PATH) is not None,
        is_persistent=_is_persistent() if reading.gpus else None,
    )


def node_of(path: Path) -> Node | None:
    """None where it is not there, or hidden."""
    try:
        found = path.stat()
    except OSError:
        return None
    group = ""
    with suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    return Node(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & 0o777, group)


def _has_card() -> bool:
    return any(
        text(f"{card}/vendor").strip() == NVIDIA and text(f"{card}/class").startswith(DISPLAY)
        for card in Path("/sys/bus/pci/devices").glob("*")
    )


def _is_persistent() -> bool | None:
    try:
        told = output("nvidia-smi", "--query-gpu=persistence_mode", "--format=csv,noheader")
    except NotTold:
        return None
    modes = {line.strip() for line in told.splitlines()}
    if "Disabled" in modes:
        return False
    return True if modes == {"Enabled"} else None

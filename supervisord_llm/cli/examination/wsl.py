"""What a distribution under WSL can see of itself and of Windows."""

import configparser
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from supervisord_llm.cli.diagnosis.wsl import Wsl
from supervisord_llm.cli.examination.limit import Call, NotTold, output, text
from supervisord_llm.gpu.sensor import WSL_DEVICE, WSL_LIBRARY

PROFILES = Path("/mnt/c/Users")
DISK_S = 5.0
LINUX_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.1")


def see_wsl() -> Wsl | None:
    """None where this is no WSL."""
    kernel = text("/proc/sys/kernel/osrelease").strip()
    if "microsoft" not in kernel.lower() and not Path("/run/WSL").exists():
        return None
    mode = ""
    with suppress(NotTold):
        mode = output("wslinfo", "--networking-mode").strip().lower()
    return Wsl(
        version=1 if kernel.endswith("-Microsoft") or mode == "wsl1" else 2,
        distribution=os.environ.get("WSL_DISTRO_NAME", ""),
        init=text("/proc/1/comm").strip(),
        is_systemd_set=_settings(text("/etc/wsl.conf")).get("boot.systemd", "").lower() == "true",
        networking=mode,
        wslconfig=_wslconfig(),
        has_device=WSL_DEVICE.exists(),
        has_library=WSL_LIBRARY.exists(),
        linux_library=next((path for path in LINUX_LIBRARIES if Path(path).exists()), ""),
    )


def _wslconfig() -> Mapping[str, str] | None:
    """Of the one user of Windows who has any; which of several is ours cannot be told."""
    try:
        return Call(_read_wslconfig).within(DISK_S, str(PROFILES))
    except (NotTold, OSError):
        return None


def _read_wslconfig() -> Mapping[str, str] | None:
    if not PROFILES.is_dir():
        return None
    found = list(PROFILES.glob("*/.wslconfig"))
    if len(found) > 1:
        return None
    return _settings(found[0].read_text("utf-8-sig", errors="replace")) if found else {}


def _settings(ini: str) -> dict[str, str]:
    """ "section.key" in lower case -> value; what is no INI has none."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    with suppress(configparser.Error):
        parser.read_string(ini)
    return {
        f"{section.lower()}.{key}": (value or "").strip()
        for section in parser.sections()
        for key, value in parser.items(section)
    }

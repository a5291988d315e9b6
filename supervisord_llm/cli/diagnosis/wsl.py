"""WSL: what Windows gives this distribution, and what keeps it from serving others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from supervisord_llm.cli.diagnosis.finding import Finding

WSLCONFIG = r"%UserProfile%\.wslconfig"
ANEW = "then `wsl --shutdown` in PowerShell, and open it again"
FIREWALL_RULE = (
    "New-NetFirewallHyperVRule -Name llm -DisplayName llm -Direction Inbound "
    "-VMCreatorId '{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}' -Protocol TCP -LocalPorts PORTS -Action Allow"
)
KEPT_UP = {"general.instanceidletimeout": "[general]", "wsl2.vmidletimeout": "[wsl2]"}
"""Keys of .wslconfig that are to be -1, and their sections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wsl:
    """A distribution under WSL, as it sees itself."""

    version: Literal[1, 2] = 2
    distribution: str = ""
    """Its name; "" where the environment does not tell, as under sudo."""
    init: str = "systemd"
    """The name of process 1."""
    is_systemd_set: bool = True
    """Whether /etc/wsl.conf says [boot] systemd=true."""
    networking: str = ""
    """What `wslinfo` says is in force, such as "nat"; "" where it is not there."""
    wslconfig: Mapping[str, str] | None = field(default_factory=dict)
    """Windows' .wslconfig as "section.key" in lower case -> value; None where it cannot be seen."""
    has_device: bool = True
    """/dev/dxg"""
    has_library: bool = True
    """NVML where Windows' driver puts it."""
    linux_library: str = ""
    """NVML of a driver for Linux; "" where there is none, as it should be."""


def findings(wsl: Wsl, ports: Sequence[int]) -> Iterator[Finding]:
    """`ports` are those that other machines are to reach."""
    if wsl.version == 1:
        distribution = wsl.distribution or "DISTRIBUTION"
        mend = f"`wsl --set-version {distribution} 2` in PowerShell (`wsl -l -v` lists the names)"
        yield Finding("problem", "version", "this is WSL1, which has no GPU, no systemd and no cgroups", mend)
        return
    yield _systemd(wsl)
    if ports:
        yield _networking(wsl, ",".join(map(str, ports)))
    yield _idle(wsl)
    yield from _gpu(wsl)


def _systemd(wsl: Wsl) -> Finding:
    if wsl.init == "systemd":
        return Finding("ok", "systemd", "process 1 is systemd")
    if wsl.is_systemd_set:
        return Finding(
            "warning",
            "systemd",
            "/etc/wsl.conf asks for it, but it does not run yet",
            ANEW.removeprefix("then "),
        )
    paste = r"printf '[boot]\nsystemd=true\n' | sudo tee -a /etc/wsl.conf"
    return Finding(
        "warning", "systemd", "is not switched on, so the units cannot be used", f"`{paste}`, {ANEW}"
    )


def _networking(wsl: Wsl, ports: str) -> Finding:
    rule = f"in PowerShell as administrator `{FIREWALL_RULE.replace('PORTS', ports)}`"
    mode = wsl.networking
    is_asked_for = (wsl.wslconfig or {}).get("wsl2.networkingmode", "").lower() == "mirrored"
    if mode == "mirrored":
        return Finding("ok", "network", "mirrored", f"if other machines do not reach port {ports}: {rule}")
    if mode and is_asked_for:
        text = f"{mode}, though .wslconfig says mirrored: other machines do not reach port {ports}"
        return Finding("warning", "network", text, f"`wsl --update` (it needs Windows 11 22H2), {ANEW}")
    write = f"write `networkingMode=mirrored` under [wsl2] in {WSLCONFIG}, {ANEW}; {rule}"
    if mode:
        return Finding("warning", "network", f"{mode}: other machines do not reach port {ports}", write)
    text = "its mode cannot be asked, since this WSL has no wslinfo"
    return Finding("warning", "network", text, f"`wsl --update` in PowerShell; for other machines, {write}")


def _idle(wsl: Wsl) -> Finding:
    ends = "WSL ends a distribution that nobody has open, services or not"
    if wsl.wslconfig is None:
        missing, text = list(KEPT_UP), f"{WSLCONFIG} cannot be seen from here; by default {ends}"
    else:
        missing = [key for key in KEPT_UP if wsl.wslconfig.get(key, "").strip() != "-1"]
        text = ends
    if not missing:
        return Finding("ok", "idle", "the distribution runs on when nobody has it open")
    names = {"general.instanceidletimeout": "instanceIdleTimeout", "wsl2.vmidletimeout": "vmIdleTimeout"}
    lines = " and ".join(f"`{names[key]}=-1` under {KEPT_UP[key]}" for key in missing)
    return Finding("warning", "idle", text, f"write {lines} in {WSLCONFIG}, {ANEW}")


def _gpu(wsl: Wsl) -> Iterator[Finding]:
    if not wsl.has_device:
        mend = "with an NVIDIA card: its driver for Windows, and `wsl --update` in PowerShell"
        yield Finding("ok", "GPU", "Windows shares none (no /dev/dxg): engines run on the CPU", mend)
    elif not wsl.has_library:
        text = "/dev/dxg is there, /usr/lib/wsl/lib/libnvidia-ml.so.1 is not: engines run on the CPU"
        yield Finding("warning", "GPU", text, f"with an NVIDIA card: install its driver for Windows, {ANEW}")
    else:
        yield Finding("ok", "GPU", "/dev/dxg and NVIDIA's library are there")
    if wsl.linux_library:
        text = f"{wsl.linux_library} is of a driver for Linux and hides that of Windows in /usr/lib/wsl/lib"
        mend = f"remove the package that `dpkg -S {wsl.linux_library}` names: WSL needs no driver inside"
        yield Finding("warning", "driver", text, mend)

"""The host itself: disks, memory, limits of processes, the clock, and the tools that engines need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from supervisord_llm.cli.diagnosis.access import ENTER, READ, WRITE, Node, User, may
from supervisord_llm.cli.diagnosis.finding import Finding
from supervisord_llm.cli.render import size

GIB = 1024**3
LITTLE_BYTES = {"state": 10 * GIB, "cache": 2 * GIB}
"""Less than one venv of vLLM with CUDA takes; and what compiled kernels of a few models take."""
NO_BYTES = GIB // 4
LITTLE_INODES = 100_000
"""Files of about two venvs."""
OPEN_FILES = 8192
LOCKED_BYTES = 64 * 1024**2
SHARED_BYTES = GIB
SMALL_MEMORY_BYTES = 16 * GIB
WINDOWS = ("9p", "drvfs", "virtiofs")
FOREIGN = ("vfat", "exfat", "ntfs", "ntfs3", "fuseblk", "cifs", "smb3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A directory of [paths], or of local weights. Every None is not known."""

    name: str
    path: str
    free_bytes: int | None = None
    inodes: int | None = None
    """None also where the file system makes them as they are needed."""
    free_inodes: int | None = None
    kind: str = ""
    """Of its file system, such as "ext4"."""
    node: Node | None = None
    """None where it is not made yet."""
    silent: str = ""
    """Why it cannot be looked at; "" where it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a host has. Every None is not known."""

    user: User
    is_own_user: bool = True
    """Whether the daemon runs as the user who asks; then `check` tells what it may write."""
    is_wsl: bool = False
    gpus: int = 0
    places: tuple[Place, ...] = ()
    memory_bytes: int | None = None
    swap_bytes: int = 0
    swap_used_bytes: int = 0
    ram_budget_bytes: int | None = None
    """[host] ram_budget."""
    limits_of: str = "this shell"
    """Whose limits `open_files` and `locked_bytes` are: the daemon's, where it can be seen."""
    open_files: int | None = None
    locked_bytes: int | None = None
    """None also where there is no limit."""
    shared_bytes: int | None = None
    """Free in /dev/shm."""
    is_clock_set: bool | None = None
    has_compiler: bool = True
    has_uv: bool = True
    pythons: Mapping[str, bool] = field(default_factory=dict)
    """Version that a venv to be built asks for -> whether it is here."""


def findings(host: Host) -> Iterator[Finding]:
    for place in host.places:
        yield from _place(host, place)
    yield from _memory(host)
    yield from _limits(host)
    yield from _tools(host)
    if host.is_clock_set is False and not host.is_wsl:  # WSL takes the time from Windows
        text = "is not synchronised: downloads over TLS fail when it is far off, and logs mislead"
        yield Finding("warning", "clock", text, "`sudo timedatectl set-ntp true`")


# --- disks ----------------------------------------------------------


def _place(host: Host, place: Place) -> Iterator[Finding]:
    what, short = f"{place.name} directory", []
    if place.silent:
        yield Finding("problem", what, f"cannot be looked at: {place.silent}", "see `findmnt` and `dmesg`")
        return
    if place.kind in WINDOWS and host.is_wsl:
        text = f"{place.path} is on a disk of Windows: loading is many times slower, without hard links"
        yield Finding("warning", what, text, f"move it to a path such as /srv, and {_setting(place)}")
    elif place.kind in FOREIGN:
        text = f"{place.path} is on {place.kind}, which has no symlinks or hard links of Linux"
        yield Finding("warning", what, text, f"move it to ext4, xfs or btrfs, and {_setting(place)}")
    if place.free_bytes is not None and place.free_bytes < LITTLE_BYTES.get(place.name, 0):
        short.append(f"{size(place.free_bytes)} free for {place.path}")
    if place.inodes and place.free_inodes is not None and place.free_inodes < LITTLE_INODES:
        short.append(f"{place.free_inodes} of {place.inodes} inodes free for {place.path} (`df -i`)")
    if short:
        is_full = (place.free_bytes or 0) < NO_BYTES or place.free_inodes == 0
        mend = f"free some (`du -xhd2 {place.path} | sort -h | tail`), or {_setting(place)}"
        yield Finding("problem" if is_full else "warning", what, "; ".join(short), mend)
    if place.name not in LITTLE_BYTES:
        return
    node = None if host.is_own_user else place.node
    if node is not None and not may(host.user, node, READ | WRITE | ENTER):
        mend = f"`sudo chown -R {host.user.name}: {place.path}`"
        text = f"{host.user.name} may not write to {place.path} ({node})"
        yield Finding("problem", what, text, mend)
    elif not short and place.free_bytes is not None:
        yield Finding("ok", what, f"{size(place.free_bytes)} free for {place.path}")


def _setting(place: Place) -> str:
    if place.name in LITTLE_BYTES:
        return f"set {place.name} in [paths]"
    return "set its `source`"


# --- memory ----------------------------------------------------------


def _memory(host: Host) -> Iterator[Finding]:
    total, budget = host.memory_bytes, host.ram_budget_bytes
    if total is None:
        return
    if budget is not None and budget > total * 0.9:
        more = r", or `memory=` under [wsl2] in %UserProfile%\.wslconfig raised" if host.is_wsl else ""
        text = f"[host] ram_budget is {size(budget)}, and this host has {size(total)}"
        yield Finding("warning", "memory", text, f"lower it{more}")
    else:
        kept = "" if budget is None else f", {size(budget)} of it for models that sleep"
        yield Finding("ok", "memory", f"{size(total)}{kept}")
    if not host.swap_bytes and total < SMALL_MEMORY_BYTES:
        text = f"there is none: a start that takes more than the {size(total)} of memory is killed at once"
        mend = "`sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile"
        where = r"`swap=16GB` under [wsl2] in %UserProfile%\.wslconfig"
        mend = where if host.is_wsl else f"{mend} && sudo swapon /swapfile`, and a line in /etc/fstab"
        yield Finding("warning", "swap", text, mend)
    elif host.swap_used_bytes > max(host.swap_bytes // 2, GIB):
        text = f"{size(host.swap_used_bytes)} of {size(host.swap_bytes)} are in use: sleepers wake slowly"
        yield Finding("warning", "swap", text, "lower [host] ram_budget, or end what else runs here")


# --- limits ----------------------------------------------------------


def _limits(host: Host) -> Iterator[Finding]:
    of = host.limits_of
    if host.open_files is not None and host.open_files < OPEN_FILES:
        text = f"{of} may have {host.open_files}: each request takes two, and vLLM asks for 65535"
        yield Finding("warning", "open files", text, _raised(host, "LimitNOFILE=65536", "nofile 65536"))
    if host.gpus and host.locked_bytes is not None and host.locked_bytes < LOCKED_BYTES:
        text = f"{of} may lock {host.locked_bytes >> 10} KiB: too little for pinned memory of some engines"
        yield Finding(
            "warning", "locked memory", text, _raised(host, "LimitMEMLOCK=infinity", "memlock unlimited")
        )
    if host.gpus > 1 and host.shared_bytes is not None and host.shared_bytes < SHARED_BYTES:
        text = f"{size(host.shared_bytes)} free in /dev/shm: engines on several GPUs exchange data there"
        yield Finding("warning", "shared memory", text, "`sudo mount -o remount,size=8G /dev/shm`")


def _raised(host: Host, directive: str, limit: str) -> str:
    if host.limits_of == "the daemon":
        return f"`sudo systemctl edit llm-supervisor` with {directive} under [Service]"
    return f"`echo '* - {limit}' | sudo tee -a /etc/security/limits.conf`, and log in again"


# --- tools ----------------------------------------------------------


def _tools(host: Host) -> Iterator[Finding]:
    if not host.has_uv:
        yield Finding("problem", "uv", "is not found, and builds the venvs", "install llm-supervisor again")
    if host.gpus and not host.has_compiler:
        text = "there is none, and Triton compiles its launcher with it at an engine's first start"
        yield Finding("warning", "C compiler", text, "`sudo apt install gcc libc6-dev`")
    for version, is_here in host.pythons.items():
        if not is_here:
            text = f"{version}, which a venv asks for, is not here: uv downloads it, if it can"
            yield Finding("warning", "Python", text, f"`sudo apt install python{version}`, or let uv do it")

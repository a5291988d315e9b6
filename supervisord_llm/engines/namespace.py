"""The launcher of an engine that is kept from the network: `python -IS namespace.py COMMAND…`.

It moves into a network namespace that has nothing but a loopback device and becomes COMMAND there, with the
same pid, session, environment and arguments, so that nobody else need know.

- 127.0.0.1 works inside and is the engine's own: torch's store is there, and NCCL, which looks for any other
  interface first, takes it for its workers to meet. Nobody outside reaches it, nor it anybody outside.
- Unix sockets with a path go by the file system: the proxy reaches the engine, and its processes each other.
- CUDA needs nothing of a network. NVLink and PCIe peers are no part of one.
- Root makes the namespace directly; an engine of root could leave it again. Others need a user namespace
  around it. That maps their own user and group onto themselves and nobody else: files belong to whom they
  did, supplementary groups (`video`) go on counting for /dev/nvidia*, and COMMAND has no capability at all.
  Who made it, the daemon's user, may still signal those inside and read their /proc entries, so that stops,
  adoption and the search for orphans work as ever; those inside may not read the daemon's.
- Set-user-ID programs have no power in a user namespace. CUDA calls one, nvidia-modprobe, where no driver
  has made the node of UVM yet; so it is called here, before.

A process of its own, and not a preexec_fn, since unshare(2) makes no user namespace in a process of several
threads, and Python in a fork of one may hang. Standard library alone, and little of it: 20 ms.
"""

import ctypes
import errno
import fcntl
import os
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
AF_INET, SOCK_DGRAM, SIOCSIFFLAGS, IFF_UP = 2, 2, 0x8914, 1
CANNOT_RUN = 127
"""The exit code of a shell that cannot run a command."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Isolate this process and become the command of argv; without one, only find out whether that works."""
    command = sys.argv[1:]
    if command and os.environ.get("CUDA_VISIBLE_DEVICES"):
        make_uvm_node()
    try:
        enter()
    except OSError as why:
        full = why.errno == errno.ENOSPC
        said = "sysctl user.max_net_namespaces allows no more" if full else why.strerror
        sys.exit(f"cannot isolate from the network: {said}")
    if command:
        try:
            os.execv(command[0], command)  # noqa: S606 - as the daemon would have
        except OSError as why:
            print(f"cannot run {command[0]}: {why.strerror}", file=sys.stderr)  # noqa: T201 - the engine's log
            sys.exit(CANNOT_RUN)


def enter() -> None:
    """Move this process, of one thread, into a network namespace of its own, with its loopback device up.

    Raises:
        OSError: the kernel, or the sandbox around us, does not allow it.
    """
    try:
        _unshare(CLONE_NEWNET)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        _unshare(CLONE_NEWUSER | CLONE_NEWNET)
        _write("/proc/self/setgroups", "deny")  # else the kernel takes no map of groups from us
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _raise_loopback()


def make_uvm_node() -> None:
    """As the unit does before the daemon; where there is a driver and no node, CUDA would not start."""
    if os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/nvidia-uvm"):  # noqa: PTH110
        os.spawnlp(os.P_WAIT, "nvidia-modprobe", "nvidia-modprobe", "-u", "-c", "0")  # noqa: S606


def _unshare(flags: int) -> None:
    """os.unshare() of Python 3.12."""
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(file: str, text: str) -> None:
    with open(file, "w") as opened:  # noqa: PTH123 - pathlib is slow to import
        opened.write(text)


def _raise_loopback() -> None:
    """`ip link set lo up`; its addresses come with it."""
    descriptor = _libc.socket(AF_INET, SOCK_DGRAM, 0)  # the socket module would take as long as all the rest
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        request = b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, sys.byteorder) + bytes(22)  # struct ifreq
        fcntl.ioctl(descriptor, SIOCSIFFLAGS, request)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()

"""Room on the disk that a file has for itself, so that it can grow even when everything else is full."""

import ctypes
import errno
import os
from pathlib import Path

STEP_BYTES = 1024 * 1024
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FALLOC_FL_KEEP_SIZE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def reserve(path: Path, end: int) -> int:
    """Set disk aside for `path`, made if need be, up to its byte `end`. Blocks for about a millisecond.

    Returns up to which byte it may grow: `end`, or less where the disk is full. What hinders it otherwise
    whoever writes the file will say.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as why:
        return 0 if why.errno in NO_ROOM else end
    try:
        for start in range(0, end, STEP_BYTES):  # a full disk may still have some of it
            why_not = _fallocate(descriptor, start, min(STEP_BYTES, end - start))
            if why_not in NO_ROOM:
                return start
            if why_not:
                return end if _has_room(descriptor) else os.fstat(descriptor).st_size
        return end
    finally:
        os.close(descriptor)


def _fallocate(descriptor: int, start: int, count: int) -> int:
    """The errno; 0 where it was done. Python's own call (posix_fallocate) would make the file longer."""
    done = _libc.fallocate(
        descriptor, FALLOC_FL_KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(count)
    )  # fmt: skip
    return 0 if done == 0 else ctypes.get_errno()


def _has_room(descriptor: int) -> bool:
    """On a file system that sets nothing aside (NFS, ZFS): whether the disk has room at the moment."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize >= STEP_BYTES

"""What root makes in the directories of another user's daemon must be that user's, who changes it later."""

import os
import pwd
from pathlib import Path


def become_owner(state: Path) -> None:
    """As root, go on as the owner of `state`, for good. Where it is root's, or not there yet: as root."""
    if os.geteuid() != 0 or not state.exists():
        return
    uid = state.stat().st_uid
    if uid == 0:
        return
    user = pwd.getpwuid(uid)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(uid)
    for variable in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[variable]
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    os.chdir(state)

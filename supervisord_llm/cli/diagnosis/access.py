"""Who may open what, by owner, group and mode. Access lists (ACL) are not looked at."""

from dataclasses import dataclass

READ, WRITE, ENTER = 4, 2, 1


@dataclass(frozen=True, slots=True)
class User:
    """Who runs the daemon and its engines."""

    name: str
    uid: int
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory or device. `mode` has the permission bits alone."""

    uid: int
    gid: int
    mode: int
    group: str = ""
    """The group's name; "" where it has none."""

    def __str__(self) -> str:
        return f"owner {self.uid}, group {self.group or self.gid}, mode {self.mode:04o}"


def may(user: User, node: Node, wanted: int) -> bool:
    """Whether `user` has all of `wanted` (READ | WRITE | ENTER). The first class that fits decides."""
    if user.uid == 0:
        return True
    shift = 6 if user.uid == node.uid else 3 if node.gid in user.gids else 0
    return (node.mode >> shift) & wanted == wanted

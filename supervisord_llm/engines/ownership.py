"""Whose process is this? Asked every few seconds for the few processes that hold GPU memory.

Looks at those processes and their ancestors alone: a Tree's own `members` reads all of /proc.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisord_llm.engines.tree import PROC, Process, Tree, marker_of, read_process


@dataclass(frozen=True, slots=True)
class Lineage:
    """A process and its ancestors, itself first, with what else tells whose it is."""

    processes: tuple[Process, ...]
    groups: frozenset[str]
    """The directories of its path in the cgroup hierarchies."""
    markers: frozenset[str]

    @classmethod
    def of(cls, pid: int) -> "Lineage":
        """As it is now; empty if there is no such process. Ends below us and below init."""
        processes: list[Process] = []
        while pid > 1 and pid != os.getpid() and (process := read_process(pid)) is not None:
            processes.append(process)
            pid = process.parent
        markers = frozenset(marker for process in processes if (marker := marker_of(process.pid)))
        return cls(tuple(processes), groups_of(processes[0].pid) if processes else frozenset(), markers)

    def belongs_to(self, tree: Tree) -> bool:
        """The same signs as Tree.members goes by. A process title hides the marker, never all of them."""
        young = [process for process in self.processes if process.start_time >= tree.start_time]
        if not young:
            return False
        return (
            tree.marker in self.markers
            or (tree.leaf is not None and tree.leaf.path.name in self.groups)
            or any(
                process.session == tree.leader  # watched, so nobody else has had its pid for long
                or process.identity == (tree.leader, tree.start_time)
                or process.identity in tree.known
                for process in young
            )
        )


def groups_of(pid: int) -> frozenset[str]:
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(name for line in lines for name in line.rpartition(":")[2].split("/") if name)


def owners(pids: Iterable[int], trees: Mapping[str, Tree]) -> dict[int, str]:
    """The name of the tree that each of `pids` belongs to; those that belong to none are left out."""
    found: dict[int, str] = {}
    for pid in pids:
        lineage = Lineage.of(pid)
        for name, tree in trees.items():
            if lineage.belongs_to(tree):
                found[pid] = name
                break
    return found

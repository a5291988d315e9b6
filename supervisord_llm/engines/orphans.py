"""Ends what an earlier life of the daemon left: known trees, and processes that no record tells of any more.

vLLM's engine core and its workers outlive an API server that is killed, and hold its GPU memory.
"""

import os
import time
from collections.abc import Collection
from pathlib import Path

from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.command import SCRATCH_VARIABLE
from supervisord_llm.engines.tree import (
    Process,
    Tree,
    marker_of,
    process_table,
    read_process,
    reap,
    variable_of,
)

SWEEP_TIMEOUT_S = 10.0
POLL_S = 0.01
LEAF = "engine-"
"""Prefix of the cgroups of engines."""


def end_tree(tree: Tree) -> bool:
    """Kill all of it and reap what is ours to reap; False if SIGKILL did not help within 10 s. Blocks."""
    deadline = time.monotonic() + SWEEP_TIMEOUT_S
    while not tree.kill():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    leader = read_process(tree.leader)  # a zombie of ours, where this process was executed anew
    if leader is not None and leader.start_time == tree.start_time and leader.parent == os.getpid():
        reap(tree.leader)
    if tree.leaf is not None:
        tree.leaf.remove()
    return True


def end_strays(engines: Path, keep: Collection[str]) -> list[str]:
    """End launches that had their scratch directory in `engines`, by the environment of their processes.

    That tells them from engines of another daemon on this host. A sentence for each.
    """
    done: list[str] = []
    for marker, process in strays(engines, keep).items():
        is_gone = end_tree(Tree(process.pid, process.start_time, marker))
        done.append(sentence(f"pid {process.pid}", is_gone=is_gone))
    return done


def strays(engines: Path, keep: Collection[str]) -> dict[str, Process]:
    """The oldest process of each launch in `engines` whose marker is not in `keep`."""
    oldest: dict[str, Process] = {}
    for process in sorted(process_table().values(), key=lambda each: (each.start_time, each.pid)):
        marker = marker_of(process.pid)
        if not marker or marker in keep or marker in oldest or process.pid == os.getpid():
            continue
        if (variable_of(process.pid, SCRATCH_VARIABLE) or "").startswith(f"{engines}/"):
            oldest[marker] = process
    return oldest


def end_leaves(root: Path, keep: Collection[str]) -> list[str]:
    """Kill and remove the cgroups of engines below `root`; a sentence for each that was not empty."""
    done: list[str] = []
    for path in sorted(root.glob(f"{LEAF}*")):
        if any(path.name.endswith(f"-{marker}") for marker in keep):
            continue
        leaf = Leaf(path)
        if leaf.members():
            done.append(sentence(f"cgroup {path.name}", is_gone=end_leaf(leaf)))
        leaf.remove()
    return done


def end_leaf(leaf: Leaf) -> bool:
    deadline = time.monotonic() + SWEEP_TIMEOUT_S
    while leaf.members():
        if time.monotonic() > deadline:
            return False
        leaf.kill()
        time.sleep(POLL_S)
    return True


def sentence(what: str, *, is_gone: bool) -> str:
    if is_gone:
        return f"ended an engine without a record ({what}), left by an earlier run of the daemon"
    return f"cannot end an engine without a record ({what}): SIGKILL did not help; reboot"

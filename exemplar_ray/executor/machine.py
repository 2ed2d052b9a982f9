"""What this machine lets a process have: its CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cpus() -> int:
    """Return how many CPUs this process may use: those it may run on, or fewer where a container has a quota."""
    # Not everywhere can a process be bound to some CPUs: macOS knows no affinity.
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = cpu_quota()
    # Down, as Ray does, but never to none.
    return count if quota is None else max(1, min(count, int(quota)))


def cpu_quota(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """Return how many CPUs' time a container, or what it runs in, lets a process have; None for no limit.

    Ray looks at the root of the hierarchy, where a container sees its own limit. A job of a batch system may share the
    hierarchy with its machine, and sees it further down.

    Args:
        cgroups: where the hierarchy is, of version 1 or 2.
        own: where it says which groups this process is in.
    """
    quotas = [quota for folder in _folders(cgroups, own) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the groups that this process is in, and those around them, whose limits hold, too."""
    yield from (cgroups, cgroups / "cpu", cgroups / "cpu,cpuacct")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        below = [part for part in path.split("/") if part]
        if ".." in below:
            continue
        yield from (root.joinpath(*below[:depth]) for depth in range(1, len(below) + 1))


def _quota_of(folder: Path) -> float | None:
    """Return one group's quota, in CPUs."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cpus = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        # There is none, or it is `max`.
        return None
    return cpus if cpus > 0 else None

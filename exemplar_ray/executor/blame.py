"""Whose fault a failure is: the item's, or that of the machine it was tried on.

An error that a machine makes, such as a full disk, says nothing of the item: another machine tries. A machine that
makes such errors is left out, so that it does not fail all that the others would do.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable

from exemplar_ray.errors import MachineError, ShardError, UnlikeRunError, UsageError

# Of a disk, whoever asks.
_OF_DISKS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENODEV, errno.ENXIO}
# Of a path: a file system that this machine has not mounted, say. Object stores name no path.
_OF_PATHS = {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ESTALE}
_OF_GPUS = (
    "CUDA error",
    "CUDA driver",
    "cuDNN error",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
    "NVML",
    "No CUDA GPUs",
    "nvJPEG",
)

_MOST_FAILURES = 2


def is_of_machine(error: BaseException) -> bool:
    """Whether the machine made an error: this one says so, or the one that it was raised from."""
    if isinstance(error, ShardError):
        return False
    if isinstance(error, (MachineError, ImportError)):
        return True
    if isinstance(error, OSError) and (
        error.errno in _OF_DISKS or (error.errno in _OF_PATHS and error.filename is not None)
    ):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_GPUS):
        return True
    return error.__cause__ is not None and is_of_machine(error.__cause__)


def is_unlike_run(error: BaseException) -> bool:
    """Whether a machine has something else than what the run is of."""
    if isinstance(error, UnlikeRunError):
        return True
    return error.__cause__ is not None and is_unlike_run(error.__cause__)


class Blame:
    """Which machines are left out. Machines go by what Ray calls their nodes.

    Args:
        tell: what to say a line with.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._by_machine: dict[str, set[Hashable]] = {}
        self._told: set[str] = set()
        self._fared_well: set[str] = set()
        self._unlike_run: set[str] = set()

    @property
    def left_out(self) -> frozenset[str]:
        """Return the machines that get no more tasks."""
        return frozenset(machine for machine, items in self._by_machine.items() if len(items) >= _MOST_FAILURES)

    def failed(self, item: Hashable, machine: str, name: str, reason: str) -> None:
        """Take down that a machine made an error, and which item it was given."""
        self._by_machine.setdefault(machine, set()).add(item)
        if machine in self.left_out and machine not in self._told:
            self._told.add(machine)
            self._tell(f"machine {name} is left out: {reason}; the run goes on with the others")

    def unlike_run(self, machine: str, reason: str) -> None:
        """Take down that a machine has something else than what the run is of.

        Raises:
            UsageError: more machines have it so than as the run has it, so that the one which began the run may be the
                bad one.
        """
        self._unlike_run.add(machine)
        alike, unlike = len(self._fared_well - self._unlike_run), len(self._unlike_run)
        if unlike > max(alike, 1):
            raise UsageError(
                f"the machines do not agree on what the run is of: {unlike} have something else than the one that "
                f"built the model, {alike} the same; {reason}; put the same files on every machine"
            )

    def fared_well(self, machine: str) -> None:
        """Take down that a machine did an item: whatever it failed before is forgiven."""
        self._by_machine.pop(machine, None)
        self._fared_well.add(machine)

    def another_fared_well(self, machines: set[str]) -> bool:
        """Whether a machine other than these has done anything."""
        return not self._fared_well <= machines

    def withdraw(self, item: Hashable) -> None:
        """No machine can do this item, so that none is to blame for it."""
        for items in self._by_machine.values():
            items.discard(item)

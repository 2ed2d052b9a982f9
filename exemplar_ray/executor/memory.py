"""How much memory tasks ask Ray for: nothing, until memory has run out once.

What a task takes is not known before one has run, and Ray counts what is asked for, not what is used. So machines take
as many tasks as they have CPUs for, until that was too many. From then on a task asks for what such tasks were
measured to take, and more each time that it runs out again, but never for more than a machine has.
"""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"
# Others of the same kind may take somewhat more.
_MARGIN = 1.25
# Where none was measured: as if so many had been too many.
_TASKS_OF_A_MACHINE = 4


def peak() -> int | None:
    """Return the most memory that this process has had in use, in bytes; None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(_PEAK)), None)


class MemoryDemand:
    """What tasks of one kind ask for, in bytes."""

    def __init__(self) -> None:
        self._peak = 0
        self._times = 0

    def measured(self, peak: int | None) -> None:
        """Take down what a process had in use that has done a task."""
        self._peak = max(self._peak, peak or 0)

    def ran_out(self) -> None:
        """Take down that memory ran out."""
        self._times += 1

    @property
    def has_run_out(self) -> bool:
        """Whether memory has run out: before, nothing is asked for."""
        return self._times > 0

    def asked(self, largest: float) -> int | None:
        """Return what to ask for; None for nothing.

        Args:
            largest: the most that one machine has to give, in bytes; 0 if that is not known.
        """
        if not self.has_run_out or not largest:
            return None
        one = _MARGIN * self._peak or largest / _TASKS_OF_A_MACHINE
        return int(min(one * 2 ** (self._times - 1), largest))

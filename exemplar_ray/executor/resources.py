"""Where and how fast to compute: what the user asks for, and what a task then gets of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exemplar_ray.errors import UsageError
from exemplar_ray.keys import key

_COMPILE = ("auto", "always", "never")
# Compiling takes half a minute, once a machine. By the data set's size alone, so that a rerun computes as
# the first run did.
_IMAGES_WORTH_COMPILING = 5000

# Images a forward pass: what a core works on should stay in its cache; a GPU wants many at a time.
_BATCH_OF_A_CORE = 4
_BATCH_OF_A_GPU = 128

_MOST_CPUS_A_GPU_TASK = 8


@dataclass(frozen=True)
class Resources:
    """Where and how fast to compute. None of it changes the result.

    None stands for what the cluster has: a GPU a task where there are GPUs; one CPU a task
    without a GPU, the GPU's share of the CPUs with one; and batches that suit either.
    """

    address: str | None = key(
        None, "ADDRESS", "the Ray cluster (default: RAY_ADDRESS, or a Ray of its own on this machine)"
    )
    batch_size: int | None = key(None, "N", "images a forward pass (default: 4 a CPU, 128 on a GPU)")
    compile: str = key(
        "auto",
        "WHEN",
        "the network, for CPUs: auto (default: from 5,000 images, or where it was before), always, never",
    )
    cpus_per_task: int | None = key(None, "N", "default: 1 without a GPU, the GPU's share of the CPUs with one")
    gpus_per_task: float | None = key(None, "N", "default: 1 where the cluster has GPUs, else 0")
    retries: int = key(3, "N", "attempts after a lost worker or a time-out (default: 3)")

    def __post_init__(self) -> None:
        if self.address is not None and not isinstance(self.address, str):
            raise UsageError(f"address is a text, not {self.address!r}")
        for name in ("batch_size", "cpus_per_task"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is a whole number from 1, not {value!r}")
        if self.compile not in _COMPILE:
            raise UsageError(f"compile is one of {', '.join(_COMPILE)}, not {self.compile!r}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise UsageError(f"retries is a whole number from 0, not {self.retries!r}")
        gpus = self.gpus_per_task
        if gpus is not None and (not isinstance(gpus, (int, float)) or gpus < 0):
            raise UsageError(f"gpus_per_task is a number from 0, not {gpus!r}")

    def compile_for(self, images: int) -> str:
        """Return whether to compile for a data set of so many images.

        Returns:
            `always` (or fail), `never`, `auto`: if it can be done, or `made`: if this machine has done it before.
        """
        return "made" if self.compile == "auto" and images < _IMAGES_WORTH_COMPILING else self.compile


@dataclass(frozen=True)
class Demand:
    """What one task asks Ray for."""

    cpus: int = 1
    gpus: float = 0

    def slots(self, totals: Mapping[str, float]) -> int:
        """Return how many such tasks run at once where there is so much in all, as `ray.cluster_resources` says it."""
        slots = totals.get("CPU", 0) / self.cpus
        return int(min(slots, totals.get("GPU", 0) / self.gpus) if self.gpus else slots)

    def fits(self, machines: Sequence[Mapping[str, float]]) -> bool:
        """Whether one of the machines has as much as one task asks for; each as `ray.nodes` says what it has."""
        return any(machine.get("CPU", 0) >= self.cpus and machine.get("GPU", 0) >= self.gpus for machine in machines)

    def refuse_impossible(self, machines: Sequence[Mapping[str, float]], where: str = "this machine has") -> None:
        """Refuse what no machine of a Ray that does not grow has: a task would wait for it for ever.

        Args:
            where: what the machines are together, or the one that there is, and that they have it.

        Raises:
            UsageError: no machine has as much as one task asks for.
        """
        if self.fits(machines):
            return
        most = {kind: max((machine.get(kind, 0) for machine in machines), default=0) for kind in ("CPU", "GPU")}
        for kind, count in (("CPU", self.cpus), ("GPU", self.gpus)):
            if count > most[kind]:
                raise UsageError(
                    f"{count:g} {kind}s a task are more than the {most[kind]:g} that {where}; "
                    f"lower --{kind.lower()}s-per-task, or give --address of a larger cluster"
                )
        raise UsageError(
            f"{self.cpus} CPUs and {self.gpus:g} GPUs a task are more than what {where}; "
            "lower --cpus-per-task or --gpus-per-task, or give --address of a larger cluster"
        )

    @property
    def words(self) -> str:
        """Return all that is asked for, in words."""
        return f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def __str__(self) -> str:
        return "a GPU" if self.gpus else f"{self.cpus} CPU"


def demand_of(resources: Resources, machines: Sequence[Mapping[str, float]]) -> Demand:
    """Settle what a task that runs a network asks for, from what was wanted and what machines have.

    Args:
        machines: those that are there, and those that may come; each as `ray.nodes` says what it has.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    gpus = float(bool(with_gpus)) if resources.gpus_per_task is None else resources.gpus_per_task
    if resources.cpus_per_task is not None:
        return Demand(resources.cpus_per_task, gpus)
    if not gpus:
        return Demand()
    # As many as every machine with GPUs has for each.
    share = min((machine.get("CPU", 1) / machine["GPU"] * gpus for machine in with_gpus), default=1)
    return Demand(int(min(max(share, 1), _MOST_CPUS_A_GPU_TASK)), gpus)


def batch_size_of(resources: Resources, demand: Demand) -> int:
    """Return how many images a forward pass takes: as many as were asked for, or as suit the device."""
    return resources.batch_size or (_BATCH_OF_A_GPU if demand.gpus else _BATCH_OF_A_CORE * demand.cpus)

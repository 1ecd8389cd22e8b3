"""The place of a process among those that do one job together, read from the environment.

torchrun and `launch.ranks` set RANK and WORLD_SIZE. srun sets SLURM_STEP_…: the variables of the *step*, the tasks that
one srun has started. The variables of the *job* (SLURM_NTASKS, SLURM_PROCID) do not help: a batch script has them too,
and is one process whatever it asked for. Everything here is a function of the environment, so it can be tested without
a cluster.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from genlab.core import RequestError

LOCAL = "127.0.0.1"
PORTS = range(15000, 32000)  # below the ports that a system assigns by itself (Linux: 32768 and up)


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `world`, `local_rank` of the `local_world` on this machine; rank zero is at `address`.

    `starter`: "alone", "torchrun" or "srun". `key` differs between any two steps, and between two starts of one.
    """

    starter: str = "alone"
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = LOCAL
    key: str = ""

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world


def place(env: Mapping[str, str]) -> Place:
    """The place that the variables describe. RequestError if machines have different numbers of tasks."""
    if "RANK" in env and int(env.get("WORLD_SIZE", 1)) > 1:
        world = int(env["WORLD_SIZE"])
        address = env.get("MASTER_ADDR", LOCAL)
        lives = env.get("TORCHELASTIC_RESTART_COUNT", "0")
        return Place(
            "torchrun", int(env["RANK"]), world, int(env.get("LOCAL_RANK", 0)),
            int(env.get("LOCAL_WORLD_SIZE", world)), address, f"torchrun {address} {env.get('MASTER_PORT')} {lives}",
        )  # fmt: skip
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env or int(env.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return Place()
    world = int(env["SLURM_STEP_NUM_TASKS"])
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(world)))
    if len(set(counts)) > 1:
        raise RequestError(
            f"srun has placed {', '.join(map(str, counts))} tasks on the machines of this step, and every machine must "
            "have the same number: give srun --ntasks-per-node"
        )
    nodes = env.get("SLURM_STEP_NODELIST", "")
    address = LOCAL if len(counts) == 1 else env.get("MASTER_ADDR") or first_host(nodes)
    life = env.get("SLURM_RESTART_COUNT", "0")
    key = f"srun {env.get('SLURM_JOB_ID')} {env['SLURM_STEP_ID']} {life}"
    return Place("srun", int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), counts[0], address, key)


def tasks_per_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" -> [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()).groups()  # type: ignore[union-attr]
        counts += [int(count)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first machine of SLURM's list: "gpu[03-05,9]-ib,login" -> "gpu03-ib"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()  # type: ignore[union-attr]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def ports(key: str, preferred: str | None = None, tries: int = 16) -> Iterator[int]:
    """The ports on which the ranks of a step look for one another: equal on every rank, different for every step.

    Rank zero listens on the first that is free. The others ask at each port whether it belongs to their step.
    """
    if preferred:
        yield int(preferred)
    for number in range(tries):
        yield PORTS[zlib.crc32(f"{key} {number}".encode()) % len(PORTS)]

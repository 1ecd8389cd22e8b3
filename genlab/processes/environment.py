"""A description of the ranks for Lightning, so that Lightning neither starts processes nor guesses their numbers."""

from __future__ import annotations

from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment

from genlab.processes.group import this_rank, world_size
from genlab.processes.rank_info import RankInfo


def environment() -> ClusterEnvironment:
    """The description of this process for Lightning, which would otherwise guess how the process was started."""
    return RankEnvironment(this_rank()) if world_size() > 1 else LightningEnvironment()


class RankEnvironment(ClusterEnvironment):
    """The ranks of one run. Address and port are not used, because `group.join` has made the process group."""

    creates_processes_externally = True
    main_address = ""
    main_port = 0

    def __init__(self, info: RankInfo) -> None:
        self.info = info

    @staticmethod
    def detect() -> bool:
        """False: Lightning must not choose this environment by itself."""
        return False

    def world_size(self) -> int:
        """Number of ranks on all machines together."""
        return self.info.world_size

    def global_rank(self) -> int:
        """Number of this rank among all."""
        return self.info.rank

    def local_rank(self) -> int:
        """Number of this rank on its machine, which is that of its GPU."""
        return self.info.local_rank

    def node_rank(self) -> int:
        """Number of the machine."""
        return self.info.rank // self.info.local_world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: Lightning calls this with the size that it computes, but the size is known."""

    def set_global_rank(self, rank: int) -> None:
        """Do nothing, for the same reason."""

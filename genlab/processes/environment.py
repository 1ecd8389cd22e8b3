"""The ranks as Lightning sees them: the numbers are given, so that it starts nothing and guesses nothing."""

from __future__ import annotations

from pytorch_lightning.plugins.environments import ClusterEnvironment

from genlab.processes.place import Place


class Ranks(ClusterEnvironment):
    """`launch.join` has made the process group before Lightning needs it, so address and port are not used."""

    creates_processes_externally = True
    main_address = ""
    main_port = 0

    def __init__(self, here: Place) -> None:
        self.here = here

    @staticmethod
    def detect() -> bool:
        """False: Lightning must not choose this by itself."""
        return False

    def world_size(self) -> int:
        """Number of ranks on all machines together."""
        return self.here.world

    def global_rank(self) -> int:
        """Number of this rank among all."""
        return self.here.rank

    def local_rank(self) -> int:
        """Number of this rank on its machine, which is that of its GPU."""
        return self.here.local_rank

    def node_rank(self) -> int:
        """The number of the machine."""
        return self.here.rank // self.here.local_world

    def set_world_size(self, size: int) -> None:
        """Nothing: Lightning computes the size again, but it is known."""

    def set_global_rank(self, rank: int) -> None:
        """As above."""

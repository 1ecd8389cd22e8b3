"""The ranks as Lightning is to see them: numbers that are known, and nothing to start or to guess."""

from __future__ import annotations

from pytorch_lightning.plugins.environments import ClusterEnvironment

from genlab.tasks.place import Place


class Ranks(ClusterEnvironment):
    """The process group exists when Lightning is asked (`launch.join`), so it needs no address and no port."""

    creates_processes_externally = True
    main_address = ""
    main_port = 0

    def __init__(self, here: Place) -> None:
        self.here = here

    @staticmethod
    def detect() -> bool:
        """Never by itself."""
        return False

    def world_size(self) -> int:
        """On all machines together."""
        return self.here.world

    def global_rank(self) -> int:
        """Among them."""
        return self.here.rank

    def local_rank(self) -> int:
        """On this machine: the number of the GPU."""
        return self.here.local_rank

    def node_rank(self) -> int:
        """The number of the machine."""
        return self.here.rank // self.here.local_world

    def set_world_size(self, size: int) -> None:
        """Lightning works it out again; it is known."""

    def set_global_rank(self, rank: int) -> None:
        """As above."""

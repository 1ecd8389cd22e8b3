"""Where the files of a data set are, and how they get there.

One folder holds all data: `data.root`, else $GENLAB_DATA, else the user's cache. A file that is there is verified by
its published md5 and read in place, so the folder may be read-only. A file that is not there is downloaded into it by
the first process, from one mirror after the other, to a temporary name that is renamed once the md5 is right: a file
with its proper name is always whole. The other processes wait and never download.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import Progress
from torch import distributed

from genlab.core import RequestError
from genlab.system.atomic import atomically

MOST = 1 << 26  # bytes of one unpacked file: those of the data sets have less than half
CONNECT_SECONDS = 30.0
WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class File:
    """A published file: its name, the folder below the root that torchvision keeps it in, its md5, its mirrors.

    `unpacked`: other names under which the content of a .gz is welcome, too (torchvision leaves it beside the .gz,
    Kaggle writes it in its own way, also into a folder of that name). `by_content`: its reader checks the md5 of what
    is inside, so that a file that somebody packed anew is welcome. `page`: where a person finds a file without mirrors.
    """

    name: str
    folder: str = ""
    md5: str | None = None
    urls: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    by_content: bool = False
    page: str = ""


def data_root(root: Path | None) -> Path:
    """The folder of all data: `root`, else $GENLAB_DATA, else `genlab` in $XDG_CACHE_HOME or ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "genlab"
    return Path(root or os.environ.get("GENLAB_DATA") or cache).expanduser()


def folders(file: File, root: Path | None) -> list[Path]:
    """Where a file may lie: torchvision's place below the root, the root itself, or Kaggle's folder in it."""
    base = data_root(root)
    return list(dict.fromkeys([base / file.folder, base, base / "archive"]))


def find(file: File, root: Path | None) -> Path | None:
    """The path of a file that is there, not yet verified."""
    places = [*folders(file, root), *(folder / name for folder in folders(file, root) for name in file.unpacked)]
    paths = (folder / name for folder in places for name in (file.name, *file.unpacked))
    return next((path for path in paths if path.is_file()), None)


def locate(files: Sequence[File], root: Path | None) -> list[Path]:
    """The verified path of every file; the first process downloads what is missing while the others wait."""
    try:
        if process_rank() == 0:
            for file in files:
                if find(file, root) is None:
                    download(file, root)
    finally:  # a failed download must not leave the others waiting: they look, find nothing, and say so
        wait_for_first(files, root)
    return [verified(file, root) for file in files]


def verified(file: File, root: Path | None) -> Path:
    """The path of a file whose md5 is right."""
    path = find(file, root)
    if path is None:
        raise missing(file, root)
    if file.md5 and path.name == file.name and not file.by_content:
        check_md5(path.read_bytes(), file.md5, path)
    return path


def unzipped(content: bytes) -> bytes:
    """What a .gz holds, up to more than any file of a data set; b"" if it is none."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return file.read(MOST)
    except (OSError, EOFError, zlib.error):
        return b""


def check_md5(content: bytes, md5: str, where: Path | str) -> None:
    """Refuse content other than the published one."""
    if md5_of(content) != md5:
        raise RequestError(
            f"{where} is damaged: its md5 is {md5_of(content)} and should be {md5}; delete or replace it"
        )


def md5_of(content: bytes) -> str:
    """The checksum that data sets are published with; it tells damage, not malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(file: File, root: Path | None) -> None:
    """Fetch a file into torchvision's place below the root, from the first mirror that delivers it whole."""
    target = folders(file, root)[0] / file.name
    failures = []
    for url in file.urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, target, file.md5)
            return
        except (OSError, HTTPException) as error:
            failures.append(str(error))
    raise missing(file, root, failures)


def fetch(url: str, target: Path, md5: str | None) -> None:
    """One download: temporary name, progress on standard error, md5, rename."""
    with atomically(target) as part:
        with (
            urlopen(Request(url, headers={"User-Agent": "genlab"}), timeout=CONNECT_SECONDS) as response,
            Progress(console=Console(stderr=True), transient=True) as progress,
            part.open("wb") as out,
        ):
            size = response.headers.get("Content-Length")
            task = progress.add_task(target.name, total=int(size) if size else None)
            while block := response.read(1 << 16):
                out.write(block)
                progress.advance(task, len(block))
        if md5 and md5_of(part.read_bytes()) != md5:
            raise OSError("what arrived has a wrong md5")


def missing(file: File, root: Path | None, failures: Sequence[str] = ()) -> RequestError:
    """The one sentence for a file that is neither here nor to be had."""
    looked = " or ".join(map(str, folders(file, root)))
    tried = f" and could not be downloaded ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    return RequestError(
        f"{file.name} is missing: it is not in {looked}{tried}; get it from {file.page or ' or '.join(file.urls)}, "
        "put it there, or point data.root or GENLAB_DATA at the folder that has it (data=mnist_mini needs nothing)"
    )


def process_rank() -> int:
    """Which process this is, before torch.distributed is up from what launchers leave in the environment."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), 0))


def wait_for_first(files: Sequence[File], root: Path | None) -> None:
    """Return when the first process has done its downloads: at a barrier if there is one, else when the files appear.

    Every process of a group passes the barrier, also one that has the files: whether it saw them is a matter of timing.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
    elif process_rank() > 0:
        deadline = time.monotonic() + WAIT_SECONDS
        while any(find(file, root) is None for file in files) and time.monotonic() < deadline:
            time.sleep(0.5)

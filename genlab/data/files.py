"""Find the files of a data set, and download missing ones.

All data sets share one folder: `data.root`, else $GENLAB_DATA, else the user's cache. A file that is already there is
checked against its published md5 and read in place, so the folder may be read-only. The first process downloads a
missing file; the other processes wait and never download.

pooch downloads from one address. The rest is our own code, because pooch has no list of mirrors, no limit on the size
of a download and no support for several processes. Its files are readable by their owner only, and incomplete if the
process is killed; `system/atomic.py` avoids both.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pooch import HTTPDownloader
from rich.console import Console
from rich.progress import Progress
from torch import distributed

from genlab.core import RequestError
from genlab.system.atomic import atomically

MAX_UNPACKED = 1 << 26  # bytes; the largest file inside an archive has less than half of that
MAX_DOWNLOAD = 1 << 28  # bytes; the largest published file, the training images of SVHN, has 182 million
CONNECT_SECONDS = 30.0
WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class File:
    """A published file.

    `name`: its file name. `folder`: the folder below the root where torchvision keeps it. `md5`: its published
    checksum. `urls`: its mirrors, in the order in which they are tried. `unpacked`: other names under which the
    unpacked content of a .gz file is accepted (torchvision leaves it beside the .gz file; Kaggle spells the name
    differently, and may put it into a folder of that name). `by_content`: the reader checks the md5 of the unpacked
    content, so a file that somebody has compressed again is accepted. `page`: the web page of a file that has no
    mirrors.
    """

    name: str
    folder: str = ""
    md5: str | None = None
    urls: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    by_content: bool = False
    page: str = ""


def data_root(root: Path | None) -> Path:
    """The folder of all data sets: `root`, else $GENLAB_DATA, else `genlab` in $XDG_CACHE_HOME or ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "genlab"
    return Path(root or os.environ.get("GENLAB_DATA") or cache).expanduser()


def folders(file: File, root: Path | None) -> list[Path]:
    """The folders in which a file may be: torchvision's below the root, the root itself, and Kaggle's `archive`."""
    base = data_root(root)
    return list(dict.fromkeys([base / file.folder, base, base / "archive"]))


def find(file: File, root: Path | None) -> Path | None:
    """The path of a file, its md5 not yet checked; None if the file is missing."""
    candidates = [*folders(file, root), *(folder / name for folder in folders(file, root) for name in file.unpacked)]
    paths = (folder / name for folder in candidates for name in (file.name, *file.unpacked))
    return next((path for path in paths if path.is_file()), None)


def locate(files: Sequence[File], root: Path | None) -> list[Path]:
    """The path of every file, with the right md5. The first process downloads missing files while the others wait.

    Raises RequestError if a file is missing and cannot be downloaded, or is damaged.
    """
    try:
        if process_rank() == 0:
            for file in files:
                if find(file, root) is None:
                    download(file, root)
    finally:  # also after a failed download: the other processes then find the file missing and stop as well
        wait_for_first(files, root)
    return [verified(file, root) for file in files]


def verified(file: File, root: Path | None) -> Path:
    """The path of a file, after checking its md5. Raises RequestError if it is missing or damaged."""
    path = find(file, root)
    if path is None:
        raise missing(file, root)
    if file.md5 and path.name == file.name and not file.by_content:
        check_md5(path.read_bytes(), file.md5, path)
    return path


def unzipped(content: bytes) -> bytes:
    """The content of a .gz file, at most `MAX_UNPACKED` bytes of it; b"" if it is not a whole .gz file."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return file.read(MAX_UNPACKED)
    except (OSError, EOFError, zlib.error):
        return b""


def check_md5(content: bytes, md5: str, where: Path | str) -> None:
    """Raise RequestError unless the content has this md5. `where` names it in the message."""
    if md5_of(content) != md5:
        raise RequestError(
            f"{where} is damaged: its md5 is {md5_of(content)} and should be {md5}; delete or replace it"
        )


def md5_of(content: bytes) -> str:
    """The checksum with which data sets are published. It detects damage, but not a deliberate forgery."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(file: File, root: Path | None) -> None:
    """Download a file into torchvision's folder below the root, from the first mirror that delivers it undamaged.

    Raises RequestError with the reason of every mirror if none does.
    """
    target = folders(file, root)[0] / file.name
    failures = []
    for url in file.urls:
        try:
            fetch(url, target, file.md5)
            return
        except (OSError, ValueError) as error:  # ValueError: the server's headers are malformed
            failures.append(plain_reason(error))
    raise missing(file, root, failures)


def fetch(url: str, target: Path, md5: str | None) -> None:
    """Download one file under a temporary name, check its md5, and rename it. Progress goes to standard error.

    Raises OSError or ValueError if that fails; then `target` is as it was.
    """
    with atomically(target) as part:
        with Progress(console=Console(stderr=True), transient=True) as progress, part.open("wb") as file:
            task = progress.add_task(target.name, total=None)

            def on_response(response: Any, **_: Any) -> None:
                size = response.headers.get("Content-Length")
                progress.update(task, total=int(size) if size else None)
                # Some servers label a .gz file as "Content-Encoding: gzip". Without the label it is stored as it is.
                response.raw.headers.pop("Content-Encoding", None)

            HTTPDownloader(
                chunk_size=1 << 16,
                timeout=CONNECT_SECONDS,
                headers={"User-Agent": "genlab", "Accept-Encoding": "identity"},
                hooks={"response": on_response},
            )(url, BoundedFile(file, lambda count: progress.advance(task, count)), None)
        if md5 and md5_of(part.read_bytes()) != md5:
            raise OSError("the downloaded file has a wrong md5")


class BoundedFile:
    """A file for a download of at most `MAX_DOWNLOAD` bytes, so that no server can fill the disk.

    `on_write` is called with the number of bytes of every block.
    """

    def __init__(self, file: IO[bytes], on_write: Callable[[int], None]) -> None:
        self.file, self.on_write = file, on_write

    def write(self, block: bytes) -> None:
        """Append a block. Raises OSError if the file would become too large."""
        if self.file.tell() + len(block) > MAX_DOWNLOAD:
            raise OSError(f"the server sends more than {MAX_DOWNLOAD:,} bytes")
        self.file.write(block)
        self.on_write(len(block))

    def flush(self) -> None:
        """pooch calls this after every block."""


def plain_reason(error: BaseException) -> str:
    """The operating system's message for a network error, like "Name or service not known", on one line.

    The package requests wraps it in several errors, whose texts are long and technical.
    """
    reason, cause = error, error.__cause__ or error.__context__
    while cause:
        if isinstance(cause, OSError):
            reason = cause
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(reason).split()) or type(reason).__name__


def missing(file: File, root: Path | None, failures: Sequence[str] = ()) -> RequestError:
    """The error for a missing file that could not be downloaded. `failures`: the reasons, one for each mirror."""
    looked = " or ".join(map(str, folders(file, root)))
    tried = f" and could not be downloaded ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    return RequestError(
        f"{file.name} is missing: it is not in {looked}{tried}; get it from {file.page or ' or '.join(file.urls)}, "
        "put it there, or point data.root or GENLAB_DATA at the folder that has it (data=mnist_mini needs nothing)"
    )


def process_rank() -> int:
    """The number of this process. Before torch.distributed is initialised, it comes from the launcher's environment."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), 0))


def wait_for_first(files: Sequence[File], root: Path | None) -> None:
    """Wait until the first process has finished downloading: at a barrier, or by polling without a process group.

    All processes go through the barrier, even those that already see the files, because the first process waits there
    for all of them.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
    elif process_rank() > 0:
        deadline = time.monotonic() + WAIT_SECONDS
        while any(find(file, root) is None for file in files) and time.monotonic() < deadline:
            time.sleep(0.5)

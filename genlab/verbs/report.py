"""`genlab report`: one web page of many runs, which needs no network: tables, curves, pictures, configs."""

from __future__ import annotations

from genlab.core import RequestError
from genlab.request.compose import Request, split_hydra
from genlab.request.outputs import writable
from genlab.results.page import page
from genlab.results.run_folders import read_runs
from genlab.system.atomic import write_text


def command(request: Request) -> None:
    """Check the request, read the runs, write the page."""
    config, _ = split_hydra(request.config())
    if not config.runs:
        raise RequestError("genlab report needs run folders, for example genlab report 'outputs/*/*'")
    out = writable("out", config.out, ".html")
    page.check_packages()
    runs, failures = read_runs("runs", map(str, config.runs))
    text = page.render(runs, failures)
    write_text(out, text)
    print(f"{out}: {len(runs)} runs, {len(text.encode()) / 1e6:.1f} MB")

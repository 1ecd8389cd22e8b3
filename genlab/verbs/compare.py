"""`genlab compare`: the results of many runs in one table, over seeds and settings, and their curves in one plot."""

from __future__ import annotations

from genlab.core import RequestError
from genlab.request.compose import Request, split_hydra
from genlab.request.outputs import writable
from genlab.results import table
from genlab.results.curves import panels
from genlab.results.groups import grouped
from genlab.results.run_folders import read_runs
from genlab.viz.plots import curves, save_figure


def command(request: Request) -> None:
    """Check the request, read the runs, print the table and write the two files."""
    config, _ = split_hydra(request.config())
    if not config.runs:
        raise RequestError("genlab compare needs run folders, for example genlab compare 'outputs/*/*'")
    out = writable("out", config.out, ".csv", ".tex")
    picture = writable("out", str(out.with_suffix(".png")), ".png")
    runs, failures = read_runs("runs", map(str, config.runs))
    groups = grouped(runs)
    found, missing = panels(groups)
    comparison = table.comparison(groups, [*failures, *missing])
    if out.suffix.lower() == ".tex":
        table.save_tex(out, comparison)
    else:
        table.save_csv(out, groups, comparison)
    written = [str(out)]
    if found:
        save_figure(picture, curves(found))
        written.append(str(picture))
    table.show(comparison, f"{len(runs)} runs, best validation first")
    print("\n".join(written))

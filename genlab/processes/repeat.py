"""`genlab train train.repeat=3`: the same run with several seeds, as the sweep `-m seed=S,S+1,S+2`.

S is the seed of the request. As in every sweep, no run takes an experiment by itself.
"""

from __future__ import annotations

from genlab.core import RequestError
from genlab.processes import sweep_overrides
from genlab.request.compose import Request
from genlab.request.values import format_value

KEY = "train.repeat"


def repeated(request: Request) -> Request:
    """The request as a sweep over seeds, if it has `train.repeat=`; otherwise the request as it is."""
    parsed = request.parse(request.overrides)
    given = [o for o in parsed if o.key_or_group == KEY]
    if not given:
        return request
    number, most = given[-1].value(), sweep_overrides.MAX_RUNS
    if number is not None and (type(number) is not int or not 1 <= number <= most):
        raise RequestError(f"{format_value(given[-1].input_line)}: expected a whole number from 1 to {most:,}, or null")
    if any(o.key_or_group == "seed" and o.is_sweep_override() for o in parsed):
        raise RequestError(f"{given[-1].input_line}: seed= gives several seeds already, so leave one of the two out")
    request.overrides = [o.input_line for o in parsed if o.key_or_group != KEY and o.input_line]
    if number is not None:
        first = sweep_overrides.check(request).seed
        seeds = ",".join(str(first + i) for i in range(number))
        request.overrides = [*(word for word in request.overrides if not word.startswith("seed=")), f"seed={seeds}"]
        request.sweep = True
    return request

"""One short file per verb: check the request, do it, write whole files or none."""

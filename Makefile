.PHONY: check test format

check:  ## what a commit must pass: a minute or two
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 -m "not slow and not gpu"

test:  ## everything: minutes
	pytest -n 2

format:
	ruff check --fix .
	ruff format .

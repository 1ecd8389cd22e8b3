.PHONY: check test format

check:  ## what a commit must pass
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow and not gpu"

test:  ## everything, also what takes minutes
	pytest

format:
	ruff check --fix .
	ruff format .

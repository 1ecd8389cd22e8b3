"""`python -m genlab` does the same as the command `genlab`."""

from genlab.cli import main

main()

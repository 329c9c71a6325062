"""`python -m eve_vl`, the form that torchrun needs."""

from eve_vl.cli import main

main()

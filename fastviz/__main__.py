"""``python -m fastviz``: the command line."""

from fastviz.cli import main

main()

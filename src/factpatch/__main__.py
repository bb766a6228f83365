"""`python -m factpatch`: the command line."""

from factpatch.cli.main import main

main()

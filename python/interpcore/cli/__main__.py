"""`python -m interpcore.cli`, the same as `interpcore`."""

from interpcore.cli import main

main()

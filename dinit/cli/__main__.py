"""`python -m dinit.cli`."""

from dinit.cli.app import main

main()

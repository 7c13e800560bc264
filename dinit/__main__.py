"""`python -m dinit`, as the `dinit` command."""

from dinit.cli import main

if __name__ == "__main__":  # not in the processes that a command starts
    main()

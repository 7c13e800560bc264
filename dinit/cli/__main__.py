"""`python -m dinit.cli`."""

from dinit.cli.app import main

if __name__ == "__main__":  # not in the processes that a command starts
    main()

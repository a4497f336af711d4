"""`python -m forethought` is the `forethought` command."""

from forethought.cli.app import run

if __name__ == "__main__":
    run()

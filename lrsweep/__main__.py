"""`python -m lrsweep` is the command `lrsweep`."""

from lrsweep.cli.main import main

if __name__ == "__main__":
    main()

"""Makes `python -m lrsweep` run the command `lrsweep`."""

from lrsweep.cli.main import main

if __name__ == "__main__":
    main()

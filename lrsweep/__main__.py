"""Makes `python -m lrsweep` run the command `lrsweep`."""

import sys

if not sys.flags.safe_path:
    # The working folder, where a `random.py` beside the user's data would be imported instead of Python's.
    del sys.path[0]

from lrsweep.cli.main import main

if __name__ == "__main__":
    main()

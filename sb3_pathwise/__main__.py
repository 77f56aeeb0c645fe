"""``python -m sb3_pathwise``: the command line, which is in ``cli.py``."""

import sys

from sb3_pathwise.cli import main

if __name__ == "__main__":
    sys.exit(main())

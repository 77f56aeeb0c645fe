"""``python -m sb3_pathwise``: the command line, which is in ``zoo/cli.py``."""

import sys

from sb3_pathwise.zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())

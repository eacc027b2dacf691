"""`python -m morphem` runs the command line."""

import sys

from morphem.cli import main

if __name__ == "__main__":
    sys.exit(main())

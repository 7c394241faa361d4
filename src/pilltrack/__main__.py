"""`python -m pilltrack`, which torchrun needs."""

import sys

from pilltrack.cli import main

if __name__ == "__main__":
    sys.exit(main())

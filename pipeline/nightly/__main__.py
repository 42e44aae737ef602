"""`python -m pipeline.nightly` runs one night."""

import sys

from pipeline.nightly.command import main

if __name__ == "__main__":
    sys.exit(main())

"""Makes the extensions of the site importable, as its configuration does."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "docs" / "_ext"))

"""A stub over pyproject.toml: Dataflow's `--setup_file` wants a file to build the workers' package
from.
"""

import setuptools

setuptools.setup()

"""One module for each command: it prepares, builds a graph and summarises its result."""

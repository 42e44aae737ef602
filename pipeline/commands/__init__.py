"""One module per command: it assembles a graph and prints what came of it."""

"""One graph, run: Beam's options, the runner, the watch over it."""

"""The skeleton of commands: Beam's options, one graph, its progress, the way it ends."""

"""The programs: options, one module per command that assembles a graph, the command line."""

"""The command line: flags, one module for each command, and what a terminal shows."""

"""Every claim of speed or memory, as a command that measures it."""

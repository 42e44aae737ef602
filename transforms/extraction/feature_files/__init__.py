"""Feature files: written in parts, taken over from an attempt that died, committed as a set."""

"""Stage 1: features of examples, written as a feature set."""

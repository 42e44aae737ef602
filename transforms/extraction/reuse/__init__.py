"""Feature records of unchanged examples, copied from another feature set."""

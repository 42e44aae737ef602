"""The searches for the k best: exact, of records and of whole gradients."""

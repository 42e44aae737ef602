"""Which labels of a training set are likely wrong."""

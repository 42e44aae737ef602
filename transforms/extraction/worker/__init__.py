"""The work of a worker process: checkpoints loaded once, and batches extracted with them."""

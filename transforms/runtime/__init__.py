"""Counters, threads and memory of a worker process."""

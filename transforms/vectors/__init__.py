"""Gradients as vectors, indexes over them, and the search by an index."""

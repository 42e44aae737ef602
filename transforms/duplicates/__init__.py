"""Duplicates: examples that are alike to the model, and groups of them whose labels conflict."""

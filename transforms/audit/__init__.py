"""Audits of training sets: labels that are probably wrong, drift, influence on a test set."""

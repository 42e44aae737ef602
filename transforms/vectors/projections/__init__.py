"""Projections of gradients onto fewer numbers: what a projection is, and how one is made."""

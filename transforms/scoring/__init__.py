"""The numbers of stage 2: scores, bounds, tiles and the exact search, without Beam and without
files.
"""

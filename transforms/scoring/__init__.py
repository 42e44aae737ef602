"""The numbers of stage 2, without Beam and files: scores, bounds, thresholds, tiles, costs."""

"""The parts of commands that follow from flags: configurations, both stages, a plan."""

"""Stage 2 on Beam: tiles scored, merged and written as rows with a report."""

"""Arrays and small tools that know neither files nor Beam."""

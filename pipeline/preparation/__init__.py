"""What flags name, found and checked before any work starts."""

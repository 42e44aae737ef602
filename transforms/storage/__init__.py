"""What is on disk: files, records, feature sets, and how a directory is committed."""

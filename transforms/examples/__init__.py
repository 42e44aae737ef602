"""What users bring as data: files of examples, read into batches of arrays."""

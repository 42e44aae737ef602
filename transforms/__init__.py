"""What the programs are made of: Beam transforms, each beside the pure function that it applies."""

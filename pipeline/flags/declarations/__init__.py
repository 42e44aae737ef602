"""Every flag, declared once: its kind, its commands, its text, its default and its rules."""

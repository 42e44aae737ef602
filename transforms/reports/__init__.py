"""Pages for a person: templates, pictures, names of classes."""

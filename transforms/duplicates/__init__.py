"""Which examples are alike to the model, and which of their labels conflict."""

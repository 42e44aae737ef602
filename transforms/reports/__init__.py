"""HTML reports: pages and their templates, previews of examples, names of classes."""

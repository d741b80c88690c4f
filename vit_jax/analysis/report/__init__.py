"""The report of an analysis: figures, a page with all of them, numbers."""

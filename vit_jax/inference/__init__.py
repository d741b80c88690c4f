"""Predictions for ordinary images: paths, bytes, pictures."""

"""Predictions for images as people have them: paths, bytes, pictures."""

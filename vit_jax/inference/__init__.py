"""From images as people have them to predictions."""

"""Google's official `.npz` files (github.com/google-research/vision_transformer)."""

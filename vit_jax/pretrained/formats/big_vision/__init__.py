"""big_vision's `.npz` files (github.com/google-research/big_vision)."""

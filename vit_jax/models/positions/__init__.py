"""Positions: what tells the encoder where a token is on the grid of patches."""

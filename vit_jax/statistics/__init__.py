"""Statistics of what a model computes: arrays in, arrays out."""

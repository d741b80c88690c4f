"""Flax NNX models: images in, logits out. Nothing here knows of data, losses or devices."""

"""Recipes: one per file, whose `get_config()` returns an ml_collections.ConfigDict; imported as `vit_jax.configs`."""

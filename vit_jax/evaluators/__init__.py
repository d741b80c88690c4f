"""Evaluators: called with parameters, they return {name: number}."""
from vit_jax.evaluators.classification import Classification

EVALUATORS = {
    'classification': Classification,
}

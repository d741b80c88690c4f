"""Evaluators: called with parameters, they return {name: number} for the names in METRICS."""
from vit_jax.evaluators.average_precision import AveragePrecision
from vit_jax.evaluators.classification import Classification

EVALUATORS = {
    'average_precision': AveragePrecision,
    'classification': Classification,
}

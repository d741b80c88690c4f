"""Evaluators by the name that `evaluators.NAME.kind` gives."""
from vit_jax.evaluators.average_precision import AveragePrecision
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.objective import ObjectiveEvaluator

EVALUATORS = {
    'average_precision': AveragePrecision,
    'classification': Classification,
    'objective': ObjectiveEvaluator,
}

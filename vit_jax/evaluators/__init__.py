"""Evaluators by the name that `evaluators.NAME.kind` gives."""
from vit_jax.evaluators.average_precision import AveragePrecision
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.frozen.few_shot import FewShot
from vit_jax.evaluators.frozen.knn import Knn
from vit_jax.evaluators.frozen.linear_probe import LinearProbe
from vit_jax.evaluators.frozen.nearest_mean import NearestMean
from vit_jax.evaluators.frozen.retrieval import Retrieval
from vit_jax.evaluators.objective import ObjectiveEvaluator
from vit_jax.evaluators.real import Real

EVALUATORS = {
    'average_precision': AveragePrecision,
    'classification': Classification,
    'few_shot': FewShot,
    'knn': Knn,
    'linear_probe': LinearProbe,
    'nearest_mean': NearestMean,
    'objective': ObjectiveEvaluator,
    'real': Real,
    'retrieval': Retrieval,
}

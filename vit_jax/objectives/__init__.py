"""Objectives by the name that `objective.kind` gives."""
from vit_jax.objectives.classification import Classification

OBJECTIVES = {
    'classification': Classification,
}

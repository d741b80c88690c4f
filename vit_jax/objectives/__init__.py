"""Objectives by the name that `objective.kind` gives."""
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.dino import Dino
from vit_jax.objectives.distillation import Distillation
from vit_jax.objectives.masked.mae import Mae
from vit_jax.objectives.masked.masked_patches import MaskedPatches
from vit_jax.objectives.masked.simmim import SimMim

OBJECTIVES = {
    'classification': Classification,
    'dino': Dino,
    'distillation': Distillation,
    'mae': Mae,
    'masked_patches': MaskedPatches,
    'simmim': SimMim,
}

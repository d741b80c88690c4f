"""Models by the name that `model.kind` gives; a new model is a file and a row here."""
from vit_jax.models.base import Model
from vit_jax.models.bit.model import BiT
from vit_jax.models.mixer.mixer import Mixer
from vit_jax.models.vit import VisionTransformer

MODELS: dict[str, type[Model]] = {
    'bit': BiT,
    'mixer': Mixer,
    'vit': VisionTransformer,
}

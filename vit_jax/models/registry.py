"""Models by the name that `model.kind` gives."""
from vit_jax.models.vit import VisionTransformer

MODELS = {
    'vit': VisionTransformer,
}

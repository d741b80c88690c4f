"""The transforms that a config can name; adding one is a builder and a row here."""
from collections.abc import Callable, Mapping

from vit_jax.data.transforms.base import Transform
from vit_jax.data.transforms.color import color_jitter
from vit_jax.data.transforms.crops import central_crop, inception_crop, pad_crop, random_crop
from vit_jax.data.transforms.erase import random_erasing
from vit_jax.data.transforms.randaugment import randaugment, trivial_augment
from vit_jax.data.transforms.resize import resize, resize_ratio, resize_small
from vit_jax.data.transforms.warp import affine, flip

# Builders by name: (size, *arguments) -> transform.
TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    'affine': affine,
    'central_crop': central_crop,
    'color_jitter': color_jitter,
    'flip': flip,
    'inception_crop': inception_crop,
    'pad_crop': pad_crop,
    'randaugment': randaugment,
    'random_crop': random_crop,
    'random_erasing': random_erasing,
    'resize': resize,
    'resize_ratio': resize_ratio,
    'resize_small': resize_small,
    'trivial_augment': trivial_augment,
}

# Transforms that take a `Picture` and decode only what they need of it; all others get its pixels.
TAKES_PICTURE = frozenset({'inception_crop'})

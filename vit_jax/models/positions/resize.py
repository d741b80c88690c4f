"""A model for images of another size, inside a training step: its tables of positions are interpolated."""
from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.models.base import flatten, path_of

# Axes of a table that count patches, from its end, by the layout of `ParamTree.positions`.
_AXES = {'grid': (-3, -2), 'rows': (-2,), 'columns': (-2,)}


def at_image_size(model: Any, image_size: tuple[int, int], key: str) -> Callable[[Any], Any]:
  """Return a function from a model to the same model for images of another size.

  Learned tables of positions are resized by cubic interpolation, antialiased if they shrink (timm's 'bicubic'), and
  gradients pass through. Sines, rotary positions and MLPs of offsets fit any grid.

  Args:
    model: what the function will be given, with or without values.
    image_size: (rows, columns) in pixels.
    key: config key that asks for the size, for the error.

  Returns:
    A function that may be traced and differentiated; it also takes a model whose blocks are unstacked.

  Raises:
    UserError: whole patches do not cover such an image, or the model has other parameters whose shapes depend on the
      image size.
  """
  if tuple(image_size) == tuple(model.image_size):
    return lambda model: model
  config = dataclasses.replace(model.config, image_size=tuple(image_size))
  if getattr(config, 'unseen_pixels', None):  # models of patches have it
    raise UserError(f'{key}: must be whole patches of {_words(config.patch_pixels)} pixels, got {_words(image_size)}')
  other = nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0)))
  shapes = _shapes(other)
  resizable = {path: layout for path, layout in model.positions.items() if layout in _AXES}
  fixed = [path for path, shape in _shapes(model).items() if shape != shapes.get(path) and path not in resizable]
  if fixed:
    raise UserError(f'{key}: this model takes images of one size, {_words(model.image_size)}, as its parameters '
                    f'{listing(fixed)} have another shape for {_words(image_size)}. Use --config.{key}='
                    f'{model.image_size[0]}, or sines or learned positions (model.position), or model.rotary')
  graphdef, _ = nnx.split(other, nnx.Param)

  def resized(key_path: jax.tree_util.KeyPath, leaf: Any) -> Any:
    path = path_of(key_path)
    return jax.image.resize(leaf, shapes[path], 'cubic') if path in resizable else leaf

  def convert(model: Any) -> Any:
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(resized, params))

  return convert


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
  return {path: jnp.shape(leaf) for path, leaf in flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()}


def _words(size: tuple[int, int]) -> str:
  return f'{size[0]}×{size[1]}'

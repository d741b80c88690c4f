"""Brings a model into a form that another format can hold, or says which config field it cannot hold."""
from collections.abc import Collection
import dataclasses
from typing import Any

from flax import nnx
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten
from vit_jax.models.positions.embeddings import POSITIONS
from vit_jax.pretrained.formats.weights import Weights, unflatten

# What a format can hold unless it says more: options of the encoder that only some code bases have.
_PLAIN: dict[str, Collection[Any]] = dict(
    patch_bias=(True,), pre_norm=(False,), distillation_token=(False,), register_position=(False,), key_bias=(True,),
    mask_token=(False,), mlp=('gelu',), mlp_hidden_norm=(False,), rotary=(None,), relative_position=(None,),
    position_at=('stem',), attention_kind=('full',), projection_size=(None,))


class NotRepresentable(UserError):
  """A format cannot hold a model; the message names the config field."""


def require(weights: Weights, form: str, **allowed: Collection[Any]) -> None:
  """Raise NotRepresentable, naming the field, unless every config field has a value that a format can hold.

  Args:
    weights: what is to be written.
    form: name of the format.
    **allowed: field → values; those of `_PLAIN` where it is not given.
  """
  plain = {name: values for name, values in _PLAIN.items() if name not in allowed and hasattr(weights.config, name)}
  for name, values in {**allowed, **plain}.items():
    found = getattr(weights.config, name)
    if found not in values:
      raise NotRepresentable(f'model.{name}: the {form} format can only hold {" or ".join(map(repr, values))}, '
                             f'got {found!r}')


def require_numerics(weights: Weights, form: str, approximate: bool, **used: Any) -> None:
  """Raise UserError if the format's own code would compute slightly different outputs, unless that is accepted.

  Args:
    weights: what is to be written.
    form: name of the format.
    approximate: whether small differences are accepted.
    **used: field → the value that the format's own code uses.
  """
  for name, value in used.items():
    found = getattr(weights.config, name)
    if found != value and not approximate:
      raise UserError(f'model.{name}: code that reads the {form} format uses {value!r}, this model {found!r}: outputs '
                      'would differ slightly; accept that with approximate=True (--approximate)')


def key_bias(weights: Weights) -> Weights:
  """Return the same model with a bias of the key projections, zeros if it had none."""
  config = weights.config
  if config.key_bias or not config.qkv_bias:
    return weights
  zeros = np.zeros((config.depth, config.heads, config.width // config.heads), np.float32)
  params = {**flatten(weights.params), 'encoder/blocks/attention/key/bias': zeros}
  return dataclasses.replace(weights, config=dataclasses.replace(config, key_bias=True), params=unflatten(params),
                             notes=(*weights.notes, 'keys: get biases of zeros'))


def layer_scale(weights: Weights) -> Weights:
  """Return the same model with a scale on each branch, ones if it had none."""
  config = weights.config
  if config.layer_scale is not None:
    return weights
  ones = {f'encoder/blocks/{name}': np.ones((config.depth, config.width), np.float32)
          for name in ('attention_scale', 'mlp_scale')}
  return dataclasses.replace(weights, config=dataclasses.replace(config, layer_scale=1.0),
                             params=unflatten({**flatten(weights.params), **ones}),
                             notes=(*weights.notes, 'blocks: get scales of ones'))


def mask_token(weights: Weights, wanted: bool) -> Weights:
  """Return the same model with or without a mask token, which it does not use: zeros if it had none."""
  config, params = weights.config, dict(weights.params)
  if config.mask_token == wanted:
    return weights
  params.pop('mask_token', None)
  token = {'mask_token': np.zeros(config.width, np.float32)} if wanted else {}
  note = 'mask token: is stored as zeros' if wanted else 'mask token: is not stored, the model does not use it'
  return dataclasses.replace(weights, config=dataclasses.replace(config, mask_token=wanted), params={**params, **token},
                             notes=(*weights.notes, note))


def norm_before_pool(weights: Weights) -> Weights:
  """Return the same model with its last LayerNorm before the pooling if order makes no difference: for one token."""
  if weights.config.pool != 'token':
    return weights
  return dataclasses.replace(weights, config=dataclasses.replace(weights.config, norm_after_pool=False))


def learned_positions(weights: Weights, fixed: Collection[str | None] = ()) -> Weights:
  """Return the same model with its position embedding as a learned table, unless its kind is one of `fixed`.

  Sine-cosine and separable embeddings are computed, the absence of one is zeros: outputs stay the same.
  """
  config, params = weights.config, dict(weights.params)
  if config.position in ('learned', *fixed):
    return weights
  module: Any = POSITIONS[config.position or 'none'](config.grid, config.width, class_token=False, rngs=nnx.Rngs(0))
  old = dict(params.pop('position', {}))
  token = {'token': old.pop('token')} if 'token' in old else {}
  for name, leaf in old.items():
    getattr(module, name)[...] = leaf
  grid = np.array(np.broadcast_to(np.asarray(module()[0], np.float32), (*config.grid, config.width)))
  note = f'position embedding {config.position!r} is stored as the learned table that equals it'
  return dataclasses.replace(
      weights, config=dataclasses.replace(config, position='learned', token_position=bool(token)),
      params=dict(params, position=dict(grid=grid, **token)), notes=(*weights.notes, note))


def register_position(weights: Weights) -> Weights:
  """Return the same model with positions for all of its prefix tokens, zeros for registers that had none."""
  config = weights.config
  if not config.registers or config.register_position:
    return weights
  config = dataclasses.replace(config, register_position=True)
  rows = weights.params.get('prefix_position', np.zeros((0, config.width), np.float32))
  rows = np.pad(rows, ((0, config.num_prefix_positions - len(rows)), (0, 0)))
  return dataclasses.replace(weights, config=config, params=dict(weights.params, prefix_position=rows),
                             notes=(*weights.notes, 'registers: get position embeddings of zeros'))


def token_position(weights: Weights) -> Weights:
  """Return the same model with a position embedding for its class token, zeros if it had none."""
  config = weights.config
  if config.token_position or not config.class_token:
    return weights
  position = dict(weights.params['position'], token=np.zeros(config.width, np.float32))
  return dataclasses.replace(weights, config=dataclasses.replace(config, token_position=True),
                             params=dict(weights.params, position=position),
                             notes=(*weights.notes, 'class token: gets a position embedding of zeros'))


def head_beside_mean(weights: Weights) -> Weights:
  """Return the same classifier with a head that also reads the mean of the patches, with weights of zero.

  Only a head on the class token is changed, and only one without a layer before it.
  """
  config = weights.config
  if config.pool != 'token' or config.num_classes is None or config.representation_size or config.projection_size:
    return weights
  kernel = np.asarray(weights.params['head']['kernel'])
  head = dict(weights.params['head'], kernel=np.concatenate([kernel, np.zeros_like(kernel)]))
  return dataclasses.replace(weights, config=dataclasses.replace(config, pool='token_gap'),
                             params=dict(weights.params, head=head),
                             notes=(*weights.notes, 'head: reads the mean of the patches too, with weights of zero'))

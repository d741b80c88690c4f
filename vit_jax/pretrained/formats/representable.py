"""Brings a model into the form that another format can hold, or says which field it cannot."""
import dataclasses

from flax import nnx
import numpy as np

from vit_jax.models import positions
from vit_jax.pretrained.formats import weights as weights_lib


def require(weights, form, **allowed):
  """Raises unless every field has a value that the format can hold.

  Args:
    weights: to be written.
    form: name of the format.
    **allowed: field → values.

  Raises:
    ValueError: names the field.
  """
  for name, values in allowed.items():
    if weights.fields[name] not in values:
      raise ValueError(f'the {form} format cannot hold {name}={weights.fields[name]!r}, '
                       f'only {" or ".join(map(repr, values))}; choose another format')


def require_numerics(weights, form, approximate, **allowed):
  """Raises if the format's own code would compute slightly otherwise, unless `approximate` accepts that."""
  for name, value in allowed.items():
    if weights.fields[name] != value and not approximate:
      raise ValueError(f'code that reads the {form} format computes with {name}={value!r}, this model with '
                       f'{weights.fields[name]!r}: outputs would differ slightly; accept that with approximate=True '
                       '(--approximate)')


def norm_before_pool(weights):
  """The same model with its last LayerNorm before the pooling where order makes no difference: at one token."""
  if weights.fields['pool'] != 'token':
    return weights
  return dataclasses.replace(weights, fields=dict(weights.fields, norm_after_pool=False))


def learned_positions(weights, fixed=()):
  """The same model with its positions as a learned table, unless they are among `fixed`.

  Sine-cosine and separable positions are computed, no position is zeros: the outputs stay the same.
  """
  fields, params = weights.fields, dict(weights.params)
  if fields['position'] in ('learned', *fixed):
    return weights
  shape = (*weights_lib.grid_of(fields), fields['width'])
  module = _position_class(fields['position'])(shape[:2], shape[2], class_token=False, rngs=nnx.Rngs(0))
  old = dict(params.pop('position', {}))
  token = {'token': old.pop('token')} if 'token' in old else {}
  for name, leaf in old.items():
    getattr(module, name)[...] = leaf
  grid = np.array(np.broadcast_to(np.asarray(module()[0], np.float32), shape))
  note = f"positions of the kind {fields['position']!r} become the learned table that equals them"
  return dataclasses.replace(weights, fields=dict(fields, position='learned', token_position=bool(token)),
                             params=dict(params, position=dict(grid=grid, **token)), notes=(*weights.notes, note))


def _position_class(name):
  return positions.NoPosition if name is None else positions.POSITIONS[name]


def token_position(weights):
  """The same model with a position for its class token, zero if it had none."""
  if weights.fields['token_position'] or not weights.fields['class_token']:
    return weights
  position = dict(weights.params['position'], token=np.zeros(weights.fields['width'], np.float32))
  return dataclasses.replace(weights, fields=dict(weights.fields, token_position=True),
                             params=dict(weights.params, position=position),
                             notes=(*weights.notes, 'the class token gets a position of its own: zero'))

"""A backbone with a linear head on its frozen features, as a model that can be saved and loaded."""
from collections.abc import Sequence

import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import ExistingFileError, UserError
from vit_jax.evaluators.frozen.linear_head import LinearHead
from vit_jax.models.base import flatten
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.formats.registry import FORMATS
from vit_jax.pretrained.formats.weights import Weights, abstract_model, unflatten
from vit_jax.pretrained.save import save


def with_head(weights: Weights, head: LinearHead, class_names: Sequence[str]) -> Weights:
  """Return the weights with another head, which reads what `Model.embed` returns; one in place of each of two heads.

  Args:
    weights: of the backbone; a head that they have is dropped.
    head: one column per class.
    class_names: one per class.

  Raises:
    UserError: a model whose head is not one linear layer on its embedding.
  """
  weights, _ = adapt(weights, Adaptation(num_classes=len(class_names), reset_head=True))
  below = tuple(f'{path}/' for path in abstract_model(weights.config).head_paths)
  new, leaves = {'kernel': head.kernel, 'bias': head.bias}, flatten(weights.params)
  for path in [path for path in leaves if path.startswith(below)]:
    value = new.get(path.rpartition('/')[2])
    if value is None or np.shape(value) != np.shape(leaves[path]):
      raise UserError(f'model: {path} of shape {np.shape(leaves[path])} is not part of a linear head on '
                      f'{head.kernel.shape[0]} features, so the probe cannot be saved; leave out --output')
    leaves[path] = value.astype(np.float32)
  return Weights(weights.config, unflatten(leaves), weights.preprocessing, tuple(class_names), source=weights.source,
                 architecture=weights.architecture)


def find_format(weights: Weights) -> str:
  """Return the format of a directory that holds a model exactly, with class names and preprocessing.

  The format that the weights come from is tried first.

  Raises:
    UserError: none does; the message says why and what to do.
  """
  reasons = []
  for form in sorted(FORMATS.values(), key=lambda form: form.name != weights.source):
    if form.suffix == '.npz':  # has no room for class names
      continue
    try:
      form.write(weights)
      return form.name
    except UserError as error:
      reasons.append(f'  {form.name}: {error}')
  raise UserError('\n'.join([
      '--output: no format that stores class names holds this model:', *reasons,
      'Leave out --output, or train the head in a run directory, which holds any model: python -m vit_jax.main '
      "--config=finetune:any,folder --config.init=MODEL --config.optim.freeze='(?!head/).*'"]))


def check_can_save(weights: Weights, class_names: Sequence[str], features: int, destination: files.PathLike) -> None:
  """Raise UserError, before anything takes long, if a probe on these features cannot be saved there.

  Args:
    weights: of the backbone.
    class_names: of the data.
    features: length of the embedding.
    destination: directory to be made.
  """
  path = files.local(destination)
  if path.suffix in ('.npz', '.safetensors'):
    raise UserError(f'--output: expected a directory, got {destination}')
  if path.exists():
    raise ExistingFileError(f'--output: {destination} exists already; nothing is overwritten, choose another')
  count = len(class_names)
  find_format(with_head(weights, LinearHead(np.zeros((features, count)), np.zeros(count)), class_names))


def save_probe(weights: Weights, head: LinearHead, class_names: Sequence[str],
               destination: files.PathLike) -> list[str]:
  """Write a backbone with a head to a new directory that `load` and `predict` take; return messages.

  Args:
    weights, head, class_names: see `with_head`.
    destination: directory to be made.

  Raises:
    UserError, FileError: see `find_format` and `pretrained.save.save`.
  """
  weights = with_head(weights, head, class_names)
  form = find_format(weights)
  _, notes = save(weights, destination, form)
  return [f'Wrote {destination} ({form}): python -m vit_jax.predict --model={destination} photo.jpg', *notes]

"""`load(source)`: a model ready to use, from a file, a directory, a run directory or a name of public weights."""
from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from absl import logging
from flax import nnx
import jax
import numpy as np

from vit_jax.base import files
from vit_jax.base.choices import choose
from vit_jax.base.errors import UnstatedSizeError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.base.sections import size
from vit_jax.base.text import count, listing, more
from vit_jax.inference.loaded import LoadedModel, loaded_class
from vit_jax.models.base import Model
from vit_jax.models.registry import MODELS
from vit_jax.pretrained import run
from vit_jax.pretrained import source as source_lib
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.classes import imagenet, names
from vit_jax.pretrained.files import subtrees
from vit_jax.pretrained.files.reader import open_file
from vit_jax.pretrained.formats import unused as unused_lib
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.formats.unwrap import Found, find_model
from vit_jax.pretrained.formats.weights import Weights
from vit_jax.rundir.layout import RunDir

_MAX_PROBLEMS_SHOWN = 20
# Notes about what was assumed or not done are warnings.
_UNCERTAIN = re.compile(r'\b(assumed|guessed|ignored|ignores)\b')


def load(source: files.PathLike, *, strict: bool = True, ema: bool = False, step: int | None = None,
         trained_at: ImageSize = None, class_names: Sequence[str] | None = None,
         image_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None,
         channels: int | None = None, num_classes: int | None = None, reset_head: bool = False,
         drop_pre_logits: bool = False, method: str | None = None, fields: Mapping[str, Any] | None = None,
         preprocessing: Mapping[str, Any] | None = None, dtype: str | None = None) -> LoadedModel:
  """Load a model; `model(images)` gives logits, `model.predict(['cat.jpg'])` probabilities.

  Args:
    source: see `read`.
    strict: whether missing, unused and non-finite arrays are errors; otherwise they are logged.
    ema: for a run directory, or a checkpoint that has one: whether to take the EMA of the parameters.
    step: for a run directory: which checkpoint; None is the latest.
    trained_at: image size, (rows, columns) in pixels, that the model was trained at; for files that do not say it and
      were not trained on square images.
    class_names: one name per logit of the weights; None: those that come with the weights, or those of ImageNet-1k for
      a head of 1,000 classes without names.
    image_size, patch_size, channels, num_classes, reset_head, drop_pre_logits, method: how to adapt the weights to a
      new task, such as the image size wanted; see `Adaptation`.
    fields: config fields that replace the source's, such as dict(dropout=0.1); see `ViTConfig`.
    preprocessing: how images are prepared, if it differs from what the source says, such as dict(mean=0.5, std=0.25);
      see `Preprocessing`.
    dtype: of activations, such as 'bfloat16'; None is float32, or what a run was trained with. Parameters are float32.

  Raises:
    UserError: a file that is damaged, of an unknown kind, or does not fit; the message names it and what is wrong.
    FileError: nothing there, or not accessible.
  """
  weights = read(source, trained_at=trained_at, image_size=image_size, class_names=class_names, strict=strict, ema=ema,
                 step=step)
  weights, lines = adapt(weights, Adaptation(image_size, patch_size, channels, num_classes, reset_head, drop_pre_logits,
                                             method))
  if not any(line.startswith('head: ') for line in lines):  # a new head has no names
    weights = imagenet.with_names(weights, source)
  log_notes(weights, source)
  for line in lines:
    logging.info('%s: %s', source, line)
  for name, value in (preprocessing or {}).items():
    choose(vars(Preprocessing()), name, 'preprocessing')
    weights = dataclasses.replace(weights, preprocessing=dataclasses.replace(weights.preprocessing, **{name: value}))
  return build(weights, **dict(fields or {}, **(dict(dtype=dtype) if dtype else {})))


def read(source: files.PathLike, *, trained_at: ImageSize = None, image_size: ImageSize = None,
         class_names: Sequence[str] | None = None, strict: bool = True, ema: bool = False,
         step: int | None = None) -> Weights:
  """Read weights without building a model.

  Args:
    source: path of an `.npz` (official or big_vision), `.safetensors` or `.pth` file (timm, Hugging Face), of a
      directory with such a file and its config.json, or of a run directory; local or remote. Or a name of public
      weights, see `hub.fetch`. With ':SUBTREE' at its end: only the arrays below that prefix, such as 'file.npz:img'.
    trained_at: image size that the model was trained at, for files that do not say it; a square one by default.
    image_size: the size wanted, to which the weights are adapted later: taken for the one trained at if the file says
      nothing, is not of a square image, and this size has as many patches.
    class_names: one name per logit; None: those that come with the weights.
    strict: whether missing, unused and non-finite arrays are errors; otherwise they are in `problems`.
    ema: for a run directory, or a checkpoint that has one: whether to take the EMA of the parameters.
    step: for a run directory: which checkpoint; None is the latest.

  Raises:
    UserError, FileError: as for `load`.
  """
  parsed = source_lib.parse(source)
  path = source_lib.locate(parsed)
  if RunDir(path).is_run():
    if parsed.subtree:
      raise UserError(f'{parsed.text}: a run directory has no sub-trees to select; leave out :{parsed.subtree}')
    weights = run.read(path, ema=ema, step=step)
    return names.with_names(_check_trained_at(weights, trained_at, parsed.text), class_names)
  if step is not None:
    raise UserError(f'{parsed.text}: not a run directory: only those have several steps; leave out step')
  path = source_lib.find_weight_file(pathlib.Path(path), parsed)
  with open_file(path) as tensors:
    tensors = subtrees.select(tensors, parsed.subtree) if parsed.subtree else tensors
    configs = source_lib.read_configs(path)
    weights = _read(find_model(tensors, configs, ema), configs, trained_at, image_size)
  _refuse_other_computation(weights, path)
  if strict and weights.problems:
    shown = '\n  '.join(weights.problems[:_MAX_PROBLEMS_SHOWN])
    rest = more(weights.problems, _MAX_PROBLEMS_SHOWN)
    problems = count(len(weights.problems), 'problem')
    raise UserError(f'{path}: {problems}; strict=False loads it anyway:\n  {shown}{rest}')
  return names.with_names(_check_trained_at(weights, trained_at, parsed.text), class_names)


def log_notes(weights: Weights, source: files.PathLike) -> None:
  """Log notes and problems: as warnings what was assumed, ignored or is missing, the rest for information."""
  for line in (*weights.notes, *weights.problems):
    uncertain = line in weights.problems or _UNCERTAIN.search(line)
    logging.log(logging.WARNING if uncertain else logging.INFO, '%s: %s', source, line)


def build(weights: Weights, **fields: Any) -> LoadedModel:
  """Build the model of some weights. Takes the arrays out of `weights.params`, so that only one copy is in memory.

  Args:
    weights: what to build it from.
    **fields: config fields that replace those of the weights.

  Raises:
    UserError: the weights do not fit a model with these fields.
  """
  config = weights_lib.with_fields(weights.config, fields) if fields else weights.config
  if differing := weights_lib.missing_or_different(config, weights.params):
    raise UserError(f'fields: the weights do not fit a model with {fields}: {listing(differing)} differ in shape or '
                    'exist on one side only')
  cls = loaded_class(MODELS[config.kind])
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))
  model = nnx.merge(graphdef, _move_to_device(weights.params))
  model.preprocessing, model.class_names, model.loss = weights.preprocessing, weights.class_names, weights.loss
  model.architecture = weights.architecture
  return model


def to_weights(model: Model) -> Weights:
  """Return the weights of a model, loaded or trained, for example to save them.

  Args:
    model: with a `config`; `preprocessing`, `class_names` and `loss` are taken from it if it has them.
  """
  params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  preprocessing = getattr(model, 'preprocessing', None)
  notes = () if preprocessing else (f'preprocessing: the model has none, assumed {Preprocessing()}',)
  return Weights(model.config, params, preprocessing or Preprocessing(), getattr(model, 'class_names', None),
                 loss=getattr(model, 'loss', 'softmax'), architecture=getattr(model, 'architecture', None),
                 source='model', notes=notes)


def _read(found: Found, configs: dict[str, dict[str, Any]], trained_at: ImageSize, image_size: ImageSize) -> Weights:
  """Read a file in the format that its names belong to; every error names the file."""
  tensors = found.tensors
  try:
    weights = found.form.read(tensors, configs, trained_at)
    weights = names.checked(imagenet.with_stated_names(weights, configs))
    return dataclasses.replace(weights, notes=(*found.notes, *weights.notes), dtypes=tensors.dtypes,
                               problems=(*weights.problems, *found.problems))
  except UnstatedSizeError as unstated:
    if image_size is None:
      raise
    try:
      return _read(found, configs, image_size, None)
    except UserError:
      raise unstated from None  # the size wanted is no hint
  except ValueError as error:
    if str(error).startswith(tensors.path):
      raise
    raise tensors.error(f'no such model can be built: {error}') from error
  except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
    if not configs:
      raise
    raise tensors.error(f'the config.json beside it has a value of the wrong type or size: {error!r}') from error


def _refuse_other_computation(weights: Weights, path: pathlib.Path) -> None:
  """Raise UserError if arrays that were not used are of the model's own computation, also without strict loading."""
  unused = [line.removeprefix('unused: ') for line in weights.problems
            if line.startswith('unused: ') and ', beside ' not in line]
  if computing := unused_lib.computing(unused):
    raise UserError(f'{path}: an architecture that vit_jax does not have, as a model without these arrays would '
                    f'compute something else: {listing(computing)}; strict=False does not change that')


def _check_trained_at(weights: Weights, trained_at: ImageSize, source: str) -> Weights:
  """Raise UserError if the weights' positions are not those of images of the size that the user gave."""
  if trained_at is None or not weights_lib.abstract_model(weights.config).positions:
    return weights
  wanted, found = size(trained_at, 'trained_at'), weights.config.image_size
  if dataclasses.replace(weights.config, image_size=wanted).grid != weights.config.grid:
    raise UserError(f'trained_at: {source} says that it was trained at {found}, got {wanted}; leave it out')
  return weights


def _move_to_device(params: weights_lib.Params) -> weights_lib.Params:
  """Move one leaf after the other and release each, so that there are never two copies of the model in memory."""
  moved = {}
  while params:
    name, leaf = params.popitem()
    moved[name] = _move_to_device(leaf) if isinstance(leaf, dict) else jax.device_put(leaf)
  return moved

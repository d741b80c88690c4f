"""`load(source)`: a model ready to use, from a file, a directory, a run directory or a name of public weights."""
from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from absl import logging
from flax import nnx
import jax
import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.base.text import count, listing, more
from vit_jax.inference.loaded import LoadedModel, loaded_class
from vit_jax.models.base import Model
from vit_jax.models.registry import MODELS
from vit_jax.pretrained import hub, run
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.files.reader import open_file
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import registry
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.formats.weights import Weights
from vit_jax.rundir.layout import RunDir

_CONFIGS = ('config.json', 'preprocessor_config.json')
_MAX_CONFIG_BYTES = 16 << 20
_MAX_PROBLEMS_SHOWN = 20


def load(source: files.PathLike, *, strict: bool = True, ema: bool = False, step: int | None = None,
         image_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None,
         channels: int | None = None, num_classes: int | None = None, reset_head: bool = False,
         drop_pre_logits: bool = False, method: str | None = None, fields: Mapping[str, Any] | None = None,
         dtype: str | None = None) -> LoadedModel:
  """Load a model; `model(images)` gives logits, `model.predict(['cat.jpg'])` probabilities.

  Args:
    source: see `read`.
    strict: whether missing, unused and non-finite arrays are errors; otherwise they are logged.
    ema: for a run directory: whether to take the exponential moving average of the parameters.
    step: for a run directory: which checkpoint; None is the latest.
    image_size, patch_size, channels, num_classes, reset_head, drop_pre_logits, method: how to adapt the weights to a
      new task; see `Adaptation`.
    fields: config fields that replace the source's, such as dict(dropout=0.1); see `ViTConfig`.
    dtype: of activations, such as 'bfloat16'; None is float32, or what a run was trained with. Parameters are float32.

  Raises:
    UserError: a file that is damaged, of an unknown kind, or does not fit; the message names it and what is wrong.
    FileError: nothing there, or not accessible.
  """
  weights = read(source, image_size=image_size, strict=strict, ema=ema, step=step)
  weights, lines = adapt(weights, Adaptation(image_size, patch_size, channels, num_classes, reset_head, drop_pre_logits,
                                             method))
  for line in (*weights.notes, *weights.problems, *lines):
    logging.info('%s: %s', source, line)
  return build(weights, **dict(fields or {}, **(dict(dtype=dtype) if dtype else {})))


def read(source: files.PathLike, *, image_size: ImageSize = None, strict: bool = True, ema: bool = False,
         step: int | None = None) -> Weights:
  """Read weights without building a model.

  Args:
    source: path of an `.npz` (official or big_vision) or `.safetensors` file (timm, Hugging Face), of a directory with
      such a file and its config.json, or of a run directory; local or remote. Or a name of public weights, see
      `hub.fetch`.
    image_size: what the model was trained at, for files that do not say it.
    strict: whether missing, unused and non-finite arrays are errors; otherwise they are in `problems`.
    ema: for a run directory: whether to take the exponential moving average of the parameters.
    step: for a run directory: which checkpoint; None is the latest.

  Raises:
    UserError, FileError: as for `load`.
  """
  source = os.fspath(source)
  path = _locate(source)
  if RunDir(path).is_run():
    return run.read(path, ema=ema, step=step)
  if ema or step is not None:
    raise UserError(f'{source}: not a run directory: only those have a moving average of the parameters (ema) and '
                    'several steps')
  path = _find_weight_file(pathlib.Path(path), source)
  with open_file(path) as tensors:
    weights = _read(tensors, _read_configs(path), image_size)
  if strict and weights.problems:
    shown = '\n  '.join(weights.problems[:_MAX_PROBLEMS_SHOWN])
    rest = more(weights.problems, _MAX_PROBLEMS_SHOWN)
    problems = count(len(weights.problems), 'problem')
    raise UserError(f'{path}: {problems}; strict=False loads it anyway:\n  {shown}{rest}')
  return weights


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
                 loss=getattr(model, 'loss', 'softmax'), source='model', notes=notes)


def _read(tensors: Tensors, configs: dict[str, dict[str, Any]], image_size: ImageSize) -> Weights:
  """Read a file in the format that its names belong to; every error names the file."""
  form = registry.recognize(tensors, configs)
  try:
    return form.read(tensors, configs, image_size)
  except ValueError as error:
    if str(error).startswith(tensors.path):
      raise
    raise tensors.error(f'no such model can be built: {error}') from error
  except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
    if not configs:
      raise
    raise tensors.error(f'the config.json beside it has a value of the wrong type or size: {error!r}') from error


def _move_to_device(params: weights_lib.Params) -> weights_lib.Params:
  """Move one leaf after the other and release each, so that there are never two copies of the model in memory."""
  moved = {}
  while params:
    name, leaf = params.popitem()
    moved[name] = _move_to_device(leaf) if isinstance(leaf, dict) else jax.device_put(leaf)
  return moved


def _locate(source: str) -> files.PathLike:
  """Return a local path, or that of a remote run directory."""
  if files.is_remote(source):
    with hub.explained(source):
      is_run = RunDir(source).is_run()
    return source if is_run else hub.copy_remote(source)
  path = files.local(source)
  if path.exists():
    return path
  if hub.is_name(source):
    return hub.fetch(source)
  raise MissingFileError(f'{source}: not found; expected an .npz or .safetensors file, a directory with '
                         "model.safetensors, a run directory, or a name such as 'google/ViT-B_16', "
                         "'hf:google/vit-base-patch16-224' or 'timm:vit_base_patch16_224.augreg_in21k'")


def _find_weight_file(path: pathlib.Path, source: str) -> pathlib.Path:
  if path.is_file():
    return path
  if (path / 'model.safetensors').is_file():
    return path / 'model.safetensors'
  found = sorted(file for file in path.iterdir() if file.suffix in ('.npz', '.safetensors'))
  if len(found) == 1:
    return found[0]
  if (path / 'model.safetensors.index.json').exists():
    raise UserError(f'{source}: holds sharded weights, which cannot be read; save the model as one model.safetensors')
  if found:
    raise UserError(f'{source}: holds several weight files; name one of {listing(file.name for file in found)}')
  raise UserError(f'{source}: expected model.safetensors, an .npz file, or the config.json and checkpoints of a run in '
                  f'this directory; it holds {listing(sorted(file.name for file in path.iterdir())) or "nothing"}')


def _read_configs(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Return the JSON files beside a `.safetensors` file."""
  configs = {}
  for name in _CONFIGS if path.suffix == '.safetensors' else ():
    file = path.parent / name
    if not file.is_file():
      continue
    try:
      config = json.loads(file.read_text()) if file.stat().st_size <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError) as error:
      raise FileError(f'{file}: not JSON: {error}') from error
    if not isinstance(config, dict):
      raise FileError(f'{file}: expected a JSON object')
    configs[name] = config
  return configs

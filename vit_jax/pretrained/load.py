"""`load(source)`: a model ready to call, from a file, a folder, a workdir or a name of public weights."""
import json
import pathlib

from absl import logging
from flax import nnx
import jax

from vit_jax.pretrained import adapt as adapt_lib
from vit_jax.pretrained.files import reader as files
from vit_jax.pretrained.formats import registry as formats
from vit_jax.pretrained import hub
from vit_jax.pretrained.files import tensors as tensors_lib
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained import run as workdir

_CONFIGS = ('config.json', 'preprocessor_config.json')
_MAX_CONFIG = 16 << 20


def load(source, *, image_size=None, patch_size=None, channels=None, num_classes=None, reset_head=False,
         drop_pre_logits=False, method=None, strict=True, average=False, step=None, fields=None, dtype=None):
  """Loads a model; `model(images)` gives logits.

  Args:
    source: see `read`.
    image_size: rows and columns in pixels; another number of patches resizes the position grid.
    patch_size: resamples the patch kernel.
    channels: of the images; adapts the patch kernel.
    num_classes: another number than the file's resets the head to zeros.
    reset_head: reset it in any case.
    drop_pre_logits: take the hidden tanh layer away.
    method: 'bilinear' or 'bicubic' for the position grid; None is that of the weights' own code.
    strict: whether missing, unused and non-finite arrays are errors; else they are logged.
    average: of a workdir, the moving average of the parameters.
    step: of a workdir, which checkpoint; None is the latest.
    fields: fields of `VisionTransformer` that win over the file's, such as dict(dropout=0.1).
    dtype: of activations, such as 'bfloat16'; None is float32, or what a run was trained with.  Parameters are float32.

  Returns:
    A `VisionTransformer` with two attributes besides: `preprocessing` and `class_names` (None if unknown).

  Raises:
    ValueError: a damaged, foreign or unfitting file; the message names it and what is wrong.
    OSError: nothing there, or out of reach.
  """
  weights = read(source, image_size=image_size, strict=strict, average=average, step=step)
  weights, lines = adapt_lib.adapt(
      weights, image_size=image_size, patch_size=patch_size, channels=channels, num_classes=num_classes,
      reset_head=reset_head, drop_pre_logits=drop_pre_logits, method=method or resize_method(weights))
  for line in (*weights.notes, *weights.problems, *lines):
    logging.info('%s: %s', source, line)
  return build(weights, **dict(fields or {}, **(dict(dtype=dtype) if dtype else {})))


def read(source, *, image_size=None, strict=True, average=False, step=None):
  """Reads `Weights` without building a model.

  Args:
    source: path of an `.npz` (official or big_vision) or `.safetensors` file (timm, Hugging Face), of a directory of
      those with its config.json, or of a workdir; local or gs://.  Or a name, see `hub.fetch`.
    image_size: what the model was trained at, where the file does not tell.
    strict: whether missing, unused and non-finite arrays are errors; else they stand in `problems`.
    average: of a workdir, the moving average of the parameters.
    step: of a workdir, which checkpoint; None is the latest.

  Raises:
    ValueError, OSError: as `load`.
  """
  path = _located(str(source))
  if workdir.is_workdir(path):
    return workdir.read(path, average=average, step=step)
  if average or step is not None:
    raise ValueError(f'{source} is no workdir of a run: only that has averaged parameters and several steps')
  path = _weights_file(pathlib.Path(path), str(source))
  with files.open_file(path) as tensors:
    weights = _read(tensors, _configs(path), image_size)
  if strict and weights.problems:
    shown = '\n  '.join(weights.problems[:20])
    more = f'\n  and {len(weights.problems) - 20} more' if len(weights.problems) > 20 else ''
    raise ValueError(f'{path}: {len(weights.problems)} problems; strict=False loads it all the same:\n  {shown}{more}')
  return weights


def _read(tensors, configs, image_size):
  """Reads in the format that the names tell; every error names the file."""
  form = formats.FORMATS[formats.recognise(tensors)]
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


def build(weights, **fields):
  """A `VisionTransformer` of weights; `fields` win over theirs.  Takes the arrays out of `weights.params`."""
  wanted = weights_lib.shapes(dict(weights.fields, **fields))
  found = {name: leaf.shape for name, leaf in weights_lib.flatten(weights.params).items()}
  if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
    raise ValueError(f'the weights do not fit a model with {fields}: {tensors_lib.shorten(differing)} differ in shape or '
                     'are on one side only')
  graphdef = nnx.graphdef(weights_lib.abstract_model(dict(weights.fields, **fields)))
  model = nnx.merge(graphdef, _on_device(weights.params))
  model.preprocessing, model.class_names = weights.preprocessing, weights.class_names
  return model


def resize_method(weights):
  """How the code that the weights come from resizes position grids: a name of `resize.METHODS`."""
  return formats.FORMATS[weights.source].METHOD if weights.source in formats.FORMATS else 'bilinear'


def _on_device(params):
  """Moves leaf by leaf and lets go of each, so that no two copies of the model are alive."""
  moved = {}
  while params:
    name, leaf = params.popitem()
    moved[name] = _on_device(leaf) if isinstance(leaf, dict) else jax.device_put(leaf)
  return moved


def _located(source):
  """A local path, or that of a workdir on gs://."""
  if '://' in source:
    with hub.explained(source):
      is_run = workdir.is_workdir(source)
    return source if is_run else hub.copy_remote(source)
  path = pathlib.Path(source).expanduser()
  if path.exists():
    return path
  if hub.is_name(source):
    return hub.fetch(source)
  raise FileNotFoundError(f'there is no {source}; expected an .npz or .safetensors file, a directory with '
                          "model.safetensors, a workdir, or a name such as 'google/ViT-B_16', "
                          "'hf:google/vit-base-patch16-224' or 'timm:vit_base_patch16_224.augreg_in21k'")


def _weights_file(path, source):
  if path.is_file():
    return path
  if (path / 'model.safetensors').is_file():
    return path / 'model.safetensors'
  found = sorted(file for file in path.iterdir() if file.suffix in ('.npz', '.safetensors'))
  if len(found) == 1:
    return found[0]
  why = f'several files of weights, name one: {", ".join(file.name for file in found[:8])}' if found else (
      'neither model.safetensors, nor an .npz file, nor the config.json and checkpoints of a run; it holds '
      + tensors_lib.shorten(file.name for file in path.iterdir()))
  if (path / 'model.safetensors.index.json').exists():
    why = 'weights in several pieces, which are not joined here: save the model as one model.safetensors'
  raise ValueError(f'{source} holds {why}')


def _configs(path):
  """The JSON files beside a `.safetensors` file."""
  configs = {}
  for name in _CONFIGS if path.suffix == '.safetensors' else ():
    file = path.parent / name
    if not file.is_file():
      continue
    try:
      config = json.loads(file.read_text()) if file.stat().st_size <= _MAX_CONFIG else None
    except (ValueError, RecursionError) as error:
      raise ValueError(f'{file}: no JSON: {error}') from error
    if not isinstance(config, dict):
      raise ValueError(f'{file}: expected a JSON object')
    configs[name] = config
  return configs

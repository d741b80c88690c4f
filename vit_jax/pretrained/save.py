"""Writes weights in another format, aside and then renamed; nothing is overwritten."""
import json
import os
import pathlib
import shutil

from safetensors.numpy import save_file

from vit_jax.base.choices import choose
from vit_jax.pretrained.formats import registry as formats
from vit_jax.pretrained.files import npz


def save(weights, destination, form=None, approximate=False):
  """Writes `Weights` to a new file or directory.

  Args:
    weights: see `load.read`.
    destination: an `.npz` file for 'google' and 'big_vision'; a directory for 'huggingface' and 'timm', or a
      `.safetensors` file whose config.json comes beside it.
    form: a name of `formats.FORMATS`; None: 'google' for an `.npz`, else 'huggingface'.
    approximate: accept that the format's own code uses another GELU or LayerNorm epsilon than the model.

  Returns:
    (paths written, lines that say what was changed to fit or is not stored).

  Raises:
    ValueError: names a field that the format cannot hold.
    FileExistsError: something is there already.
  """
  destination = pathlib.Path(destination).expanduser()
  form = form or ('google' if destination.suffix == '.npz' else 'huggingface')
  module = choose(formats.FORMATS, form, 'format')
  if module.SUFFIX == '.npz' and destination.suffix != '.npz':
    raise ValueError(f'{destination}: the {form} format is a file whose name ends in .npz')
  if module.SUFFIX != '.npz' and destination.suffix == '.npz':
    raise ValueError(f'{destination}: the {form} format is a directory or a .safetensors file')
  as_file = destination.suffix in ('.npz', '.safetensors')
  arrays, configs, written = module.write(weights, approximate)
  folder = destination.parent if as_file else destination
  name = destination.name if as_file else 'model.safetensors'
  targets = [folder / name, *(folder / config for config in configs)]
  for path in [destination, *targets]:
    if path.exists():
      raise FileExistsError(f'{path} is there already; nothing is overwritten, choose another destination')
  files = {name: lambda path: _write_arrays(path, arrays)}
  files.update({config: lambda path, values=values: path.write_text(json.dumps(values, indent=2) + '\n')
                for config, values in configs.items()})
  _write_files(folder, files, whole=not as_file)
  return targets, [*written.notes[len(weights.notes):], *_not_stored(weights, form)]


def _write_arrays(path, arrays):
  if '.npz' in path.suffixes:
    npz.write(path, arrays)
  else:
    save_file(arrays, path, metadata={'format': 'pt'})  # the key that transformers insists on
    # The library makes files that the owner alone may read; the folder, just made, knows the umask.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _write_files(folder, files, whole):
  """Writes all files in a folder aside, then renames the folder, or each file into a folder that may be there."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  aside = folder.parent / f'.{folder.name}.{os.getpid()}.part'
  aside.mkdir()
  try:
    for name, write in files.items():
      write(aside / name)
    if whole:
      aside.rename(folder)
      return
    folder.mkdir(exist_ok=True)
    for name in reversed(files):  # the weights last: a file without its config is never seen
      (aside / name).rename(folder / name)
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _not_stored(weights, form):
  if formats.FORMATS[form].SUFFIX != '.npz':
    return []
  names = [f'{len(weights.class_names)} class names are not stored in .npz files'] if weights.class_names else []
  return [f'preprocessing is not stored in .npz files: {weights.preprocessing}', *names]

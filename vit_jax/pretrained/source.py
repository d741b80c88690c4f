"""Sources of weights: what a user writes, such as 'file.npz:img', and the file or run directory that it means."""
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.base.text import listing
from vit_jax.pretrained import hub, public_names
from vit_jax.rundir.layout import RunDir

_PICKLES = ('.pth', '.pt', '.bin')
_MAX_CONFIG_BYTES = 16 << 20
# The place, which may contain a colon, and the subtree: a path of names such as img or model_ema.module.
_FORM = re.compile(r'((?:\w+://[^/]*|hf:|timm:)?[^:]+?)(?::([A-Za-z_][\w-]*(?:[./][\w-]+)*))?')


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of weights as a user names it: 'PLACE' or 'PLACE:SUBTREE'.

  Attributes:
    text: all of it, for messages.
    place: path, remote path, URL or name of public weights.
    subtree: prefix of the arrays to read, such as 'img' or 'model_ema'; None: the file holds one model.
  """
  text: str
  place: str
  subtree: str | None = None


def parse(text: files.PathLike) -> Source:
  """Split 'PLACE:SUBTREE'; a path that exists is a place as a whole."""
  text = os.fspath(text)
  match = _FORM.fullmatch(text)
  if not match or (not files.is_remote(text) and files.local(text).exists()):
    return Source(text, text)
  return Source(text, match[1], match[2])


def anchored(text: str) -> str:
  """Return a source whose place, if it is a relative path that exists, is absolute, to be read from elsewhere."""
  source = parse(text)
  if files.is_remote(source.place) or not files.local(source.place).exists():
    return text
  return os.fspath(files.local(source.place)) + text[len(source.place):]


def locate(source: Source) -> files.PathLike:
  """Return the local path of a source, or the remote one of a run directory; download what is public or remote.

  Raises:
    MissingFileError: neither a path nor a name of public weights.
    FileError: it cannot be downloaded.
  """
  if source.place.startswith(('http://', 'https://')):
    return hub.fetch(source.place)
  if files.is_remote(source.place):
    with hub.explained(source.place):
      is_run = RunDir(source.place).is_run()
    return source.place if is_run else hub.copy_remote(source.place)
  path = files.local(source.place)
  if path.exists():
    return path
  if public_names.is_name(source.place):
    return hub.fetch(source.place)
  if public_names.is_bare(source.place) and not path.parent.exists():
    try:
      return hub.fetch(source.place)
    except FileError as error:
      raise FileError(f'{source.text}: no such file or directory; as the name of a Hugging Face model: {error}'
                      ) from error
  raise MissingFileError(f'{source.text}: not found; expected an .npz, .safetensors or .pth file, a directory with '
                         "model.safetensors, a run directory, or a name such as 'google/ViT-B_16', "
                         "'hf:google/vit-base-patch16-224' or 'timm:vit_base_patch16_224.augreg_in21k'")


def find_weight_file(path: pathlib.Path, source: Source) -> pathlib.Path:
  """Return the weight file at a path: itself, or the one in this directory.

  Raises:
    UserError: the directory has none, or several.
  """
  if path.is_file():
    return path
  for name in public_names.WEIGHT_FILES:
    if (path / name).is_file():
      return path / name
  for suffixes in (('.npz', '.safetensors'), _PICKLES):
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(found) == 1:
      return found[0]
    if found:
      raise UserError(f'{source.text}: holds several weight files; name one of {listing(file.name for file in found)}')
  held = listing(sorted(file.name for file in path.iterdir())) or 'nothing'
  raise UserError(f'{source.text}: expected model.safetensors, an .npz file, or the config.json and checkpoints of a '
                  f'run in this directory; it holds {held}')


def read_configs(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Return the JSON files beside a weight file; none belong to an `.npz` file.

  Raises:
    FileError: one of them is not a JSON object.
  """
  configs = {}
  for name in public_names.CONFIG_FILES if path.suffix != '.npz' else ():
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

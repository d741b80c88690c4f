"""Downloads public weights by name, such as 'google/ViT-B_16', and keeps them in a cache."""
from collections.abc import Iterator
import contextlib
import hashlib
import http.client
import pathlib
import re
from typing import BinaryIO, Protocol, runtime_checkable
import urllib.error
import urllib.parse
import urllib.request

from absl import logging
from etils import epath
import tqdm

from vit_jax.base import files, platform
from vit_jax.base.errors import FileError, UserError
from vit_jax.pretrained import public_names
from vit_jax.pretrained.files import sharded

BASES = {
    **{host: f'https://storage.googleapis.com/{bucket}' for host, bucket in public_names.BUCKETS.items()},
    'hf': 'https://huggingface.co',
}
_CHUNK = 1 << 20
_NETWORK_ERRORS = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


@runtime_checkable
class _Readable(Protocol):
  """An open file or an HTTP response."""

  def read(self, size: int, /) -> bytes:
    """Return at most `size` bytes, none at the end."""
    ...


def fetch(name: str, cache: files.PathLike | None = None) -> pathlib.Path:
  """Return the local copy of public weights; download them unless they are in the cache.

  Args:
    name: see `public_names.parse`: files of public buckets are `.npz` files, models of Hugging Face ('hf:ORG/NAME',
      'timm:NAME.TAG', 'ORG/NAME', optionally with '@REVISION') are directories of weight and config files.
    cache: directory; None is $VIT_JAX_CACHE, else ~/.cache/vit_jax.

  Returns:
    Path of the file or of the directory.

  Raises:
    UserError: a name of an unknown form.
    FileError: no network, or no access; the message names alternatives.
  """
  public, folder = public_names.parse(name), _cache_folder(cache)
  if public.host != 'hf':
    url = f'{BASES[public.host]}/{urllib.parse.quote(public.path)}.npz'
    return _download(url, folder / public.host / f'{public.path}.npz', name)
  revision = urllib.parse.quote(public.revision, safe='')
  folder = folder / 'hf' / public.path / revision
  if not _is_complete(folder):
    _fetch_repository(f'{BASES["hf"]}/{public.path}/resolve/{revision}', folder, name)
  return folder


def _fetch_repository(url: str, folder: pathlib.Path, name: str) -> None:
  """Download the config files and the first of `public_names.WEIGHT_FILES` that is there, with its shards."""
  get = lambda file, required=True: _download(f'{url}/{urllib.parse.quote(file)}', folder / file, name, required)
  get('config.json')
  get('preprocessor_config.json', required=False)
  for file in public_names.WEIGHT_FILES:
    if get(file, required=False).is_file():
      for shard in _shards(folder / file):
        get(shard)
      return
  raise FileError(f'{url}: holds none of {", ".join(public_names.WEIGHT_FILES)}. {_alternatives(name, 404)}')


def _is_complete(folder: pathlib.Path) -> bool:
  """Return whether a repository was downloaded as a whole: then no server is asked again."""
  weights = [folder / file for file in public_names.WEIGHT_FILES if (folder / file).is_file()][:1]
  others = [folder / file for file in public_names.CONFIG_FILES if (folder / file).is_file()]
  return bool(weights) and len(others) > 0 and all(
      _is_intact(path) for path in (*others, *weights, *(folder / shard for shard in _shards(weights[0]))))


def _shards(path: pathlib.Path) -> list[str]:
  """Return the names of the files that an index lists; none if it is not an index."""
  if not path.name.endswith(sharded.SUFFIX):
    return []
  try:
    return sorted(set(sharded.shard_names(path).values()))
  except UserError as error:
    raise FileError(f'{path}: {error}') from error


def copy_remote(path: str, cache: files.PathLike | None = None) -> pathlib.Path:
  """Return a local copy of a remote file, such as gs://…; copy it to the cache unless the same file is there."""
  remote = epath.Path(path)
  target = _cache_folder(cache) / 'remote' / hashlib.sha256(path.encode()).hexdigest()[:16] / remote.name
  with explained(path):
    size = remote.stat().length
    if not (_is_intact(target) and target.stat().st_size == size):
      with remote.open('rb') as file:
        _store(file, target, size, path)
  return target


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
  """Turn any error about a remote path into a FileError that says what may be missing."""
  try:
    yield
  except Exception as error:  # each object store's client has its own exceptions
    raise FileError(f'{path}: cannot read it: {error}; check that it exists, that you are signed in (gcloud auth '
                    "application-default login) and that gcsfs is installed (pip install 'vit_jax[tpu]')") from error


def _cache_folder(cache: files.PathLike | None) -> pathlib.Path:
  return files.local(cache) if cache else platform.cache_folder()


def _download(url: str, target: pathlib.Path, name: str, required: bool = True) -> pathlib.Path:
  """Return the local copy of a URL; a file that is not required may be missing on the server."""
  if _is_intact(target):
    return target
  try:
    with urllib.request.urlopen(url, timeout=30) as response:
      size = response.headers.get('Content-Length')
      _store(response, target, None if size is None else int(size), target.name)
  except urllib.error.HTTPError as error:
    if required or error.code != 404:
      raise FileError(f'{url}: answered {error.code} {error.reason}. {_alternatives(name, error.code)}') from error
  except _NETWORK_ERRORS as error:
    raise FileError(f'{url}: cannot reach it: {getattr(error, "reason", error)}. Without a network give the path of a '
                    f'file that was downloaded elsewhere. {_alternatives(name)}') from error
  return target


def _store(file: BinaryIO | _Readable, target: pathlib.Path, size: int | None, label: str) -> None:
  """Copy an open file to `target`, whole or not at all, with its SHA-256 in a file beside it."""
  digest, done = hashlib.sha256(), 0
  with files.replacing(target, 'the download') as aside, aside.open('wb') as out, \
      tqdm.tqdm(total=size, desc=label, unit='B', unit_scale=True, disable=None) as bar:
    while chunk := _read(file, label):
      out.write(chunk)
      digest.update(chunk)
      done += len(chunk)
      bar.update(len(chunk))
    if size not in (None, done):
      raise FileError(f'{label}: the connection ended after {done:,} of {size:,} bytes; try again')
    _digest_file(target).unlink(missing_ok=True)  # never a new file beside an old digest
  files.write(_digest_file(target), f'{digest.hexdigest()}  {target.name}\n')


def _read(file: BinaryIO | _Readable, label: str) -> bytes:
  try:
    return file.read(_CHUNK)
  except (OSError, http.client.HTTPException) as error:  # not to be mistaken for an error of writing
    raise FileError(f'{label}: the connection ended: {error}; try again') from error


def _is_intact(target: pathlib.Path) -> bool:
  """Return whether the file is there and still has the SHA-256 that was recorded when it was downloaded."""
  if not target.is_file() or not _digest_file(target).is_file():
    return False
  with open(target, 'rb') as file:
    same = _digest_file(target).read_text().startswith(hashlib.file_digest(file, 'sha256').hexdigest())
  if not same:
    logging.warning('%s does not have the SHA-256 that was recorded; it is fetched again', target)
  return same


def _digest_file(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(target.name + '.sha256')


def _alternatives(name: str, code: int | None = None) -> str:
  """Return what to try instead of a name that cannot be downloaded; `code` is the HTTP status, if there was one."""
  public = public_names.parse(name)
  if public.host in ('google', 'bit', 'mixer'):
    why = 'The official bucket answers 403 to anonymous users since 2026. ' if code in (401, 403) else ''
    return f'{why}timm and Hugging Face hold the same weights: {" or ".join(_same_weights(public.path))}.'
  if public.host == 'big_vision':
    return 'Download the file on a machine with access and give its path.'
  why = 'The name may be wrong, private, or without a model.safetensors or pytorch_model.bin. ' if code else ''
  return f'{why}Look for it at https://huggingface.co/models; expected {public_names.HELP}.'


def _same_weights(name: str) -> list[str]:
  """Return names under which timm and Hugging Face hold an official file, as far as its name says."""
  if match := re.search(r'BiT-M-R(\d+)x(\d)', name):
    return [f'timm:resnetv2_{match[1]}x{match[2]}_bit.goog_in21k']
  if match := re.search(r'Mixer-([BL])_(\d+)', name):
    return [f'timm:mixer_{match[1].lower()}{match[2]}_224.goog_in21k']
  sizes = dict(Ti='tiny', S='small', B='base', L='large', H='huge')
  match = re.search(r'(Ti|S|B|L|H)_(\d+)', name)
  if not match:
    return ['timm:vit_base_patch16_224.augreg_in21k', 'hf:google/vit-base-patch16-224-in21k']
  size, patch = sizes[match[1]], match[2]
  fine_tuned = 'imagenet2012' in name
  if 'augreg' in name:
    return [f'timm:vit_{size}_patch{patch}_224.augreg_in21k', f'timm:vit_{size}_patch{patch}_224.augreg_in21k_ft_in1k']
  if 'sam/' in name:
    return [f'timm:vit_{size}_patch{patch}_224.sam_in1k']
  pixels = 384 if fine_tuned and not name.endswith('-224') else 224
  return [f'hf:google/vit-{size}-patch{patch}-{pixels}' + ('' if fine_tuned else '-in21k'),
          f'timm:vit_{size}_patch{patch}_{pixels}.' + ('orig_in21k_ft_in1k' if fine_tuned else 'orig_in21k')]

"""Names of public weights, such as 'google/ViT-B_16': where they are, and a cache of downloads."""
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

BASES = {
    'google': 'https://storage.googleapis.com/vit_models',
    'big_vision': 'https://storage.googleapis.com/big_vision',
    'hf': 'https://huggingface.co',
}
_HELP = ("'google/ViT-B_16' (also google/imagenet21k+imagenet2012/…, google/augreg/…, google/sam/…), "
         "'big_vision/vit_s16_i1k_300ep', 'hf:ORG/NAME' or 'timm:NAME.TAG'")
_CHUNK = 1 << 20
_NETWORK_ERRORS = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


@runtime_checkable
class _Readable(Protocol):
  """An open file or an HTTP response."""

  def read(self, size: int, /) -> bytes:
    """Return at most `size` bytes, none at the end."""
    ...


def is_name(source: str) -> bool:
  """Return whether `source` has the form of a name of public weights."""
  return bool(re.match(r'(google/|big_vision/|hf:|timm:)', source))


def fetch(name: str, cache: files.PathLike | None = None) -> pathlib.Path:
  """Return the local copy of public weights; download them unless they are in the cache.

  Args:
    name: 'google/…' and 'big_vision/…' are `.npz` files, 'hf:ORG/NAME' and 'timm:NAME.TAG' directories of
      safetensors and config files, optionally with '@REVISION'.
    cache: directory; None is $VIT_JAX_CACHE, else ~/.cache/vit_jax.

  Returns:
    Path of the file or of the directory.

  Raises:
    UserError: a name of an unknown form.
    FileError: no network, or no access; the message names alternatives.
  """
  folder = _cache_folder(cache)
  if '..' in name or '\\' in name:
    raise _unknown(name)
  if match := re.fullmatch(r'(google|big_vision)/(\S+?)(\.npz)?', name):
    path = match[2] if '/' in match[2] or match[1] == 'big_vision' else f'imagenet21k/{match[2]}'
    url = f'{BASES[match[1]]}/{urllib.parse.quote(path)}.npz'
    return _download(url, folder / match[1] / f'{path}.npz', name)
  match = re.fullmatch(r'hf:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?', re.sub('^timm:', 'hf:timm/', name))
  if not match:
    raise _unknown(name)
  revision = match[2] or 'main'
  folder = folder / 'hf' / match[1] / revision
  for file, required in (('config.json', True), ('preprocessor_config.json', False), ('model.safetensors', True)):
    _download(f'{BASES["hf"]}/{match[1]}/resolve/{revision}/{file}', folder / file, name, required)
  return folder


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


def _unknown(name: str) -> UserError:
  return UserError(f'{name}: not a name of public weights; expected {_HELP}')


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
  if name.startswith('google/'):
    why = 'The official bucket answers 403 to anonymous users since 2026. ' if code in (401, 403) else ''
    return f'{why}timm and Hugging Face hold the same weights: {" or ".join(_same_weights(name))}.'
  if name.startswith('big_vision/'):
    return 'Download the file on a machine with access and give its path.'
  why = 'The name may be wrong, private, or without a model.safetensors (pickles are never loaded). ' if code else ''
  return f'{why}Look for it at https://huggingface.co/models; expected {_HELP}.'


def _same_weights(name: str) -> list[str]:
  """Return names under which timm and Hugging Face hold an official file, as far as its name says."""
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

"""Names of public weights, such as 'google/ViT-B_16': where they are, and a cache of what was downloaded."""
import contextlib
import hashlib
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request

from absl import logging
from etils import epath
import tqdm

from vit_jax.base import platform

BASES = {
    'google': 'https://storage.googleapis.com/vit_models',
    'big_vision': 'https://storage.googleapis.com/big_vision',
    'hf': 'https://huggingface.co',
}
_HELP = ("'google/ViT-B_16' (also google/imagenet21k+imagenet2012/…, google/augreg/…, google/sam/…), "
         "'big_vision/vit_s16_i1k_300ep', 'hf:ORG/NAME' or 'timm:NAME.TAG'")
_CHUNK = 1 << 20


def is_name(source):
  """Whether `source` is written like a name of public weights."""
  return bool(re.match(r'(google/|big_vision/|hf:|timm:)', source))


def fetch(name, cache=None):
  """Downloads public weights unless they are in the cache.

  Args:
    name: 'google/…' and 'big_vision/…' are `.npz` files, 'hf:ORG/NAME' and 'timm:NAME.TAG' directories of
      safetensors and config files; '@REVISION' may follow those.
    cache: folder; None is $VIT_JAX_CACHE, else ~/.cache/vit_jax.

  Returns:
    Path of the file or of the directory.

  Raises:
    ValueError: a name of no known form.
    OSError: no network, or no access; the message names alternatives.
  """
  cache = _cache(cache)
  if '..' in name or '\\' in name:
    raise ValueError(f'unknown weights {name!r}; expected {_HELP}')
  if match := re.fullmatch(r'(google|big_vision)/(\S+?)(\.npz)?', name):
    path = match[2] if '/' in match[2] or match[1] == 'big_vision' else f'imagenet21k/{match[2]}'
    url = f'{BASES[match[1]]}/{urllib.parse.quote(path)}.npz'
    return _cached(url, cache / match[1] / f'{path}.npz', name)
  match = re.fullmatch(r'hf:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?', re.sub('^timm:', 'hf:timm/', name))
  if not match:
    raise ValueError(f'unknown weights {name!r}; expected {_HELP}')
  revision = match[2] or 'main'
  folder = cache / 'hf' / match[1] / revision
  for file, needed in (('config.json', True), ('preprocessor_config.json', False), ('model.safetensors', True)):
    _cached(f'{BASES["hf"]}/{match[1]}/resolve/{revision}/{file}', folder / file, name, needed)
  return folder


def copy_remote(path, cache=None):
  """Copies a remote file, such as gs://…, to the cache unless the same is there; returns the local path."""
  remote = epath.Path(path)
  target = _cache(cache) / 'remote' / hashlib.sha256(str(path).encode()).hexdigest()[:16] / remote.name
  with explained(path):
    if not (_intact(target) and target.stat().st_size == remote.stat().length):
      with remote.open('rb') as file:
        _store(file, target, remote.stat().length, str(path))
  return target


@contextlib.contextmanager
def explained(path):
  """Turns any error over a remote path into an OSError that says what may be missing."""
  try:
    yield
  except Exception as error:  # the clients of object stores each have their own
    raise OSError(f'cannot read {path}: {error}; is it there, are you signed in (gcloud auth application-default '
                  "login), is gcsfs installed (pip install 'vit_jax[tpu]')?") from error


def _cache(cache):
  return pathlib.Path(cache).expanduser() if cache else platform.cache_folder()


def _cached(url, target, name, needed=True):
  """The local copy of a URL; None if it is not needed and not there."""
  if _intact(target):
    return target
  try:
    with urllib.request.urlopen(url, timeout=30) as response:
      size = response.headers.get('Content-Length')
      _store(response, target, None if size is None else int(size), target.name)
  except urllib.error.HTTPError as error:
    if not needed and error.code == 404:
      return None
    raise OSError(f'{url} answered {error.code} {error.reason}. {_alternatives(name, error.code)}') from error
  except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
    raise OSError(f'cannot reach {url}: {getattr(error, "reason", error)}. Without a network give the path of a file '
                  f'that was downloaded elsewhere. {_alternatives(name)}') from error
  return target


def _store(file, target, size, label):
  """Copies an open file to `target`, written aside and renamed, and its SHA-256 beside it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  aside = target.with_name(f'.{target.name}.{os.getpid()}.part')
  digest, done = hashlib.sha256(), 0
  try:
    with open(aside, 'wb') as out, tqdm.tqdm(total=size, desc=label, unit='B', unit_scale=True, disable=None) as bar:
      while chunk := file.read(_CHUNK):
        out.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        bar.update(len(chunk))
    if size not in (None, done):
      raise OSError(f'{label}: the connection ended after {done:,} of {size:,} bytes; try again')
    _digest_file(target).unlink(missing_ok=True)  # never a new file beside an old digest
    os.replace(aside, target)
    _digest_file(target).write_text(f'{digest.hexdigest()}  {target.name}\n')
  finally:
    aside.unlink(missing_ok=True)


def _intact(target):
  """Whether the file is there and has the SHA-256 that it came with."""
  if not target.is_file() or not _digest_file(target).is_file():
    return False
  with open(target, 'rb') as file:
    same = _digest_file(target).read_text().startswith(hashlib.file_digest(file, 'sha256').hexdigest())
  if not same:
    logging.warning('%s does not have the SHA-256 that was recorded; it is fetched again', target)
  return same


def _digest_file(target):
  return target.with_name(target.name + '.sha256')


def _alternatives(name, code=None):
  if name.startswith('google/'):
    why = 'The official bucket answers 403 to anonymous users since 2026. ' if code in (401, 403) else ''
    same = _same_weights(name)
    return f'{why}timm and Hugging Face hold the same weights: {" or ".join(same)}.'
  if name.startswith('big_vision/'):
    return 'Download the file where you have access and give its path.'
  why = 'The name may be wrong, private, or without a model.safetensors (pickles are never loaded). ' if code else ''
  return f'{why}Look for it at https://huggingface.co/models; expected {_HELP}.'


def _same_weights(name):
  """Names under which timm and Hugging Face hold an official file, as well as the name tells."""
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

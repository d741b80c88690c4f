"""Names of public weights, such as 'google/ViT-B_16' or 'facebook/dinov2-base': what they mean."""
import dataclasses
import re
import urllib.parse

from vit_jax.base.errors import UserError

HELP = ("'google/ViT-B_16' (also google/imagenet21k+imagenet2012/…, google/augreg/…, google/sam/…), "
        "'big_vision/vit_s16_i1k_300ep', 'hf:ORG/NAME', 'timm:NAME.TAG' or the ORG/NAME of a Hugging Face model")
# The public buckets of storage.googleapis.com.
BUCKETS = {'google': 'vit_models', 'big_vision': 'big_vision', 'bit': 'bit_models', 'mixer': 'mixer_models'}
# What a Hugging Face repository may hold, the best first.
WEIGHT_FILES = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin',
                'pytorch_model.bin.index.json')
CONFIG_FILES = ('config.json', 'preprocessor_config.json')
_REVISION = r'[\w.-]+(?:/[\w.-]+)*'
_HUB = re.compile(rf'hf:([\w.-]+/[\w.-]+?)(?:@({_REVISION}))?')
_BARE = re.compile(rf'\w[\w.-]*/[\w.-]+(?:@{_REVISION})?')
_FILE_SUFFIXES = ('.npz', '.safetensors', '.pth', '.pt', '.bin', '.json', '.ckpt', '.tar')


@dataclasses.dataclass(frozen=True)
class PublicName:
  """Where public weights are.

  Attributes:
    host: 'hf' for the Hugging Face hub, else a key of BUCKETS.
    path: ORG/NAME there, or the path in the bucket without '.npz'.
    revision: branch, tag, commit or 'refs/pr/N' of the hub.
  """
  host: str
  path: str
  revision: str = 'main'


def is_name(text: str) -> bool:
  """Return whether a text begins as only names of public weights do."""
  return text.startswith(('google/', 'big_vision/', 'hf:', 'timm:'))


def is_bare(text: str) -> bool:
  """Return whether a text may be the ORG/NAME of a Hugging Face model; a relative path can look the same."""
  return bool(_BARE.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES)


def parse(name: str) -> PublicName:
  """Return what a name of public weights means.

  'google/NAME' is a file of Google's buckets if NAME begins with a capital letter (ViT-B_16, R50+ViT-B_16, BiT-M-R50x1,
  Mixer-B_16), has a folder before it or ends in '.npz'; in lower case (google/vit-base-patch16-224) it is a model on
  Hugging Face. 'hf:' always means Hugging Face.

  Raises:
    UserError: a name of an unknown form, or a URL that is none of the above.
  """
  if re.match(r'https?://', name):
    return _parse_url(name)
  if '..' in name or '\\' in name:
    raise _unknown(name)
  if match := re.fullmatch(r'(google|big_vision)/(\S+?)(\.npz)?', name):
    if match[1] == 'big_vision':
      return PublicName('big_vision', match[2])
    if '/' in match[2] or match[2][:1].isupper() or match[3]:
      return _official(match[2])
  with_prefix = f'hf:{name}' if _BARE.fullmatch(name) else re.sub('^timm:', 'hf:timm/', name)
  match = _HUB.fullmatch(with_prefix)
  if not match:
    raise _unknown(name)
  return PublicName('hf', match[1], match[2] or 'main')


def _official(path: str) -> PublicName:
  """Return the place of an official file; a name without a folder is that of the ImageNet-21k weights."""
  file = path.rpartition('/')[2]
  if file.startswith('BiT-'):
    return PublicName('bit', path)
  return PublicName('mixer' if file.startswith('Mixer-') else 'google', path if '/' in path else f'imagenet21k/{path}')


def _parse_url(url: str) -> PublicName:
  """Return what a URL of the hub or of a bucket means.

  Raises:
    UserError: it is elsewhere, or one file of a repository.
  """
  try:
    parts = urllib.parse.urlsplit(url)
  except ValueError as error:
    raise UserError(f'{url}: not a web address: {error}') from error
  path = [urllib.parse.unquote(part) for part in parts.path.split('/') if part]
  if parts.hostname in ('huggingface.co', 'hf.co', 'www.huggingface.co') and len(path) >= 2 and path[0] not in (
      'datasets', 'spaces', 'api', 'docs', 'collections'):
    return _parse_hub_url(url, path)
  if parts.hostname == 'storage.googleapis.com' and len(path) >= 2:
    for host, bucket in BUCKETS.items():
      if path[0] == bucket and path[-1].endswith('.npz') and '..' not in path:
        return PublicName(host, '/'.join(path[1:]).removesuffix('.npz'))
    raise UserError(f'{url}: not read as a URL; give gs://{"/".join(path)}')
  raise UserError(f"{url}: web addresses are not read, only names; download it (curl -LO '{url}') and give the path, "
                  f'or a name of public weights: {HELP}')


def _parse_hub_url(url: str, path: list[str]) -> PublicName:
  repository, rest, revision = '/'.join(path[:2]), path[3:], None
  if len(path) > 2 and path[2] not in ('resolve', 'blob', 'tree', 'raw'):
    raise UserError(f'{url}: not the page of a model or of its files; give hf:{repository}')
  if rest:
    # A slash in a revision is quoted in addresses, but people write refs/pr/2.
    size = 3 if rest[0] == 'refs' and len(rest) >= 3 else 1
    revision, rest = '/'.join(rest[:size]), rest[size:]
  name = f'hf:{repository}' + (f'@{revision}' if revision else '')
  if rest and (len(rest) > 1 or rest[0] not in (*WEIGHT_FILES, *CONFIG_FILES)):
    raise UserError(f"{url}: one file of a repository; give {name} for the model there, or download the file "
                    f"(curl -LO '{url.replace('/blob/', '/resolve/')}') and give its path")
  return parse(name)


def _unknown(name: str) -> UserError:
  return UserError(f'{name}: not a name of public weights; expected {HELP}')

"""Images that cannot be decoded: find them before training does, and leave them out."""
from collections.abc import Sequence
from concurrent import futures

from absl import logging
from tqdm import tqdm

from vit_jax.base.errors import RetryError, UserError
from vit_jax.base.text import listing
from vit_jax.data.images.decode import decode
from vit_jax.data.sources.base import Source

_CHUNK = 64  # images per task: enough to pay for its overhead, few enough for a smooth progress bar
_MAX_LISTED = 5  # files that the message names


def without_corrupt(source: Source, threads: int) -> Source:
  """Read and decode every image once, and leave out those that fail, with a warning that names them.

  The rest is numbered without gaps, so order, resume and counting work as for any split.

  Args:
    source: the split.
    threads: threads to decode with.

  Returns:
    The source itself if all images are good, else the good ones.

  Raises:
    UserError: no image is good.
    RetryError: an image could not be read for a reason that may pass.
  """
  chunks = [range(len(source))[start:start + _CHUNK] for start in range(0, len(source), _CHUNK)]
  errors = {}
  # disable=None: no progress bar if stderr is not a terminal.
  with futures.ThreadPoolExecutor(max(1, threads)) as pool, tqdm(
      total=len(source), desc=f'Checking {source.name} {source.split}', unit='image', disable=None, leave=False) as bar:
    for chunk, found in zip(chunks, pool.map(lambda chunk: _errors(source, chunk), chunks), strict=True):
      errors.update(found)
      bar.update(len(chunk))
  if not errors:
    return source
  lines = [f'{source.describe(index)}: {error}' for index, error in errors.items()]
  message = (f'{source.name} {source.split}: skipped {len(errors)} of {len(source)} images that cannot be decoded:\n  '
             + listing(lines, _MAX_LISTED, separator='\n  '))
  if len(errors) == len(source):
    raise UserError(message)
  logging.warning(message)
  return source.keep([index for index in range(len(source)) if index not in errors])


def _errors(source: Source, indices: Sequence[int]) -> dict[int, Exception]:
  """Return {index: error} of the records that cannot be read or decoded."""
  errors = {}
  for index in indices:
    try:
      decode(source[index]['image'], source.channels, source.upright)
    except RetryError:  # not corrupt, but out of reach
      raise
    except (OSError, ValueError) as error:
      errors[index] = error
  return errors

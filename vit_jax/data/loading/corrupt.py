"""Finds the images that cannot be decoded, before training meets them."""

from concurrent import futures

from absl import logging
from tqdm import tqdm

from vit_jax.data.images.decode import decode
from vit_jax.data.sources.base import Source

_CHUNK = 64  # Images a task: enough to pay for it, few enough for a smooth progress line.
_NAMED = 5  # Files that the message names.


def without_corrupt(source: Source, threads: int) -> Source:
  """Reads and decodes every image once and leaves out those that fail; a warning names them.

  What is left is numbered without gaps, so order, resume and counting are as for any split.

  Args:
    source: the split.
    threads: that decode.

  Returns:
    The source itself where all is well, else the rest of it.

  Raises:
    ValueError: nothing is left.
  """
  chunks = [range(len(source))[start:start + _CHUNK] for start in range(0, len(source), _CHUNK)]
  bad = {}
  # disable=None: no progress line where stderr is no terminal.
  with futures.ThreadPoolExecutor(max(1, threads)) as pool, tqdm(
      total=len(source), desc=f'Checking {source.name} {source.split}', unit='image', disable=None, leave=False) as bar:
    for chunk, errors in zip(chunks, pool.map(lambda chunk: _errors(source, chunk), chunks)):
      bad.update(errors)
      bar.update(len(chunk))
  if not bad:
    return source
  message = _message(source, bad)
  if len(bad) == len(source):
    raise ValueError(message)
  logging.warning(message)
  return source.keep([index for index in range(len(source)) if index not in bad])


def _errors(source, indices):
  """{index: error} of the records that cannot be read or decoded."""
  errors = {}
  for index in indices:
    try:
      decode(source[index]['image'], source.channels, source.upright)
    except (OSError, ValueError) as error:
      errors[index] = error
  return errors


def _message(source, bad):
  lines = [f'  {source.describe(index)}: {error}' for index, error in list(bad.items())[:_NAMED]]
  more = [f'  and {len(bad) - _NAMED} more'] if len(bad) > _NAMED else []
  return '\n'.join([f'{source.name} {source.split}: skipped {len(bad)} of {len(source)} images that cannot be '
                    'decoded:', *lines, *more])

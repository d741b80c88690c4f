"""The feature pass: the representation of every example of a split, once, spread over devices."""
import collections
from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.distributed.strategy import Strategy
from vit_jax.training.state import model_params

Progress = Callable[[int], None]  # gets the number of examples done so far


@dataclasses.dataclass(frozen=True)
class Features:
  """The features of a split in stored order.

  Attributes:
    features: (N, D) float32, what `Model.embed` returns.
    labels: (N,) int32, 0..num_classes - 1.
    num_classes: number of classes of the dataset; some may have no example here.
  """
  features: np.ndarray
  labels: np.ndarray
  num_classes: int

  def keep(self, indices: np.ndarray) -> 'Features':
    """Return the examples at `indices`, (n,) integers or (N,) bool."""
    return Features(self.features[indices], self.labels[indices], self.num_classes)


class FeaturePass:
  """A compiled pass over batches that keeps what `model.embed` returns.

  Each process has the features of all examples afterwards, N × D × 4 bytes; besides them only a few batches are in
  memory. Examples are placed by their ids, so batch size, padding, devices and processes do not change the result.

  Args:
    model: params → model; it computes in its own dtype.
    normalize: uint8 images → float32.
    strategy: how the pass is spread over devices.
  """

  def __init__(self, model: Callable[[Any], Any], normalize: Callable[[jax.Array], jax.Array], strategy: Strategy):
    def step(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
      found = model(model_params(params))
      if not hasattr(found, 'embed'):
        raise UserError(f'model: {type(found).__name__} has no method embed(images), which evaluators on frozen '
                        'features need')
      rows = found.embed(normalize(batch['image']))
      return strategy.gather((rows, batch['label'], batch['id'], batch['mask']))

    self._step = strategy.compile(step, donate=False)
    self._strategy = strategy

  def __call__(self, params: Any, batches: Iterable[Mapping[str, Any]], num_classes: int,
               progress: Progress | None = None) -> Features:
    """Compute the features of one pass.

    Args:
      params: on the devices.
      batches: one pass over a split, from `loader.eval_batches`.
      num_classes: of the dataset.
      progress: called after each batch.

    Raises:
      UserError: a model without `embed`, features that are not finite, or a record that cannot be read.
    """
    # On a CPU several programs with collectives in flight can deadlock; elsewhere one ahead hides the dispatch.
    ahead = 0 if jax.default_backend() == 'cpu' else 1
    found: list[tuple[np.ndarray, ...]] = []
    in_flight: collections.deque[Any] = collections.deque()
    done = [0]

    def fetch() -> None:
      rows, labels, ids, mask = jax.device_get(in_flight.popleft())
      found.append((rows[mask], labels[mask], ids[mask]))
      done[0] += int(mask.sum())
      if progress:
        progress(done[0])

    for batch in batches:
      in_flight.append(self._step(params, self._strategy.put(
          {name: batch[name] for name in ('image', 'label', 'id', 'mask')})))
      if len(in_flight) > ahead:
        fetch()
    while in_flight:
      fetch()
    return _in_stored_order(found, num_classes)


def _in_stored_order(parts: list[tuple[np.ndarray, ...]], num_classes: int) -> Features:
  """Return the features of parts (rows, labels, ids), which are freed on the way, in the order of ids 0..N - 1."""
  count, width = sum(len(ids) for *_, ids in parts), parts[0][0].shape[1]
  features, labels = np.empty((count, width), np.float32), np.empty(count, np.int32)
  while parts:
    rows, classes, ids = parts.pop()
    features[ids], labels[ids] = rows, classes
  if bad := count - int(np.isfinite(features).all(axis=1).sum()):
    raise UserError(f'model: the features of {bad:,} of {count:,} images are not finite; the weights are damaged or '
                    'have diverged, or float16 is too narrow for them (bfloat16 is not)')
  return Features(features, labels, num_classes)

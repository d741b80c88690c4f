"""Examples that are left out of a step: they keep their place in the batch, with weight 0."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.training.step import WEIGHT


def leave_out(batch: Mapping[str, Any], rows: Sequence[int], batch_size: int, first: int = 0) -> dict[str, Any]:
  """Return this process's part of a batch, with weight 0 for some examples of the global batch.

  The images and labels of those are replaced by their neighbors', 2i by 2i + 1 and the reverse, because mixup and
  CutMix mix neighbors; or by zeros if both are left out. Their ids stay, so that the run's hash does.

  Args:
    batch: NumPy arrays (b, …), see `Batch`.
    rows: of the global batch.
    batch_size: B, of the global batch.
    first: row of the global batch that is the first here.
  """
  size, out = len(batch['id']), set(rows)
  here = [row for row in sorted(out) if first <= row < first + size]
  kept = batch_size - len(out)
  weight = np.full(size, batch_size / kept if kept else 0.0, np.float32)
  changed = {name: batch[name].copy() for name in ('image', 'label')}
  for row in here:
    neighbor = (row ^ 1) - first
    weight[row - first] = 0.0
    usable = (row ^ 1) not in out and 0 <= neighbor < size
    for name, values in changed.items():
      values[row - first] = batch[name][neighbor] if usable else 0
  return dict(batch, **changed, **{WEIGHT: weight})


def pick_cause(losses: np.ndarray, usual: float) -> list[int]:
  """Return the rows of a batch without which its mean loss is usual; all of them if it takes more than half.

  Args:
    losses: (B,), one per example.
    usual: the mean that the others may have at most.
  """
  order = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind='stable')[::-1]  # the largest first
  sorted_losses = losses[order].astype(np.float64)
  for count in range(len(losses) // 2 + 1):
    rest = sorted_losses[count:]
    if np.isfinite(rest).all() and rest.mean() <= usual:
      return sorted(int(row) for row in order[:count])
  return list(range(len(losses)))

"""The batch: what a loader makes and a step takes."""
from typing import NotRequired, TypedDict

import numpy as np

from vit_jax.data.sources.info import DatasetInfo


class Batch(TypedDict):
  """Examples of one batch that this process holds, B = global batch size / number of processes.

  Keys:
    image: (B, rows, columns, channels) uint8, 0..255.
    label: (B,) int32, 0..num_classes - 1; for multi-label sources (B, num_classes) int32 of 0 and 1.
    id: (B,) int32, index of the record in the split.
    rng: (B,) uint32, random bits of each example, for randomness on the device.
    mask: (B,) bool, False for the zeros that fill up the last batch of an evaluation; training batches have none.
  """
  image: np.ndarray
  label: np.ndarray
  id: np.ndarray
  rng: np.ndarray
  mask: NotRequired[np.ndarray]


def batch_shapes(info: DatasetInfo, *, batch_size: int,
                 image_size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
  """Return {key: (shape, dtype)} of a global training batch, without making one."""
  label = (info.num_classes,) if info.multi_label else ()
  example = {'image': ((*image_size, info.channels), np.uint8), 'label': (label, np.int32), 'id': ((), np.int32),
             'rng': ((), np.uint32)}
  return {key: ((batch_size, *shape), dtype) for key, (shape, dtype) in example.items()}

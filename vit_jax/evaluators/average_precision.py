"""Mean average precision, for images that have any number of classes."""
from flax import nnx
import jax
import numpy as np


class AveragePrecision:
  """Ranks all images of a split by each class's logit.

  Args:
    graphdef: the model's NNX graph definition.
    objective: not needed: the ranking does not depend on the loss.
    normalize: from uint8 to float images.
    strategy: see `training.parallel`.
    data: the run's data, see `data.dataset`.
    batch_size: global batch.
    split: TFDS split string.
  """

  METRICS = ('mAP',)

  def __init__(self, graphdef, objective, normalize, strategy, data, batch_size, *, split: str = 'test'):
    del objective

    def step(params, batch):
      return strategy.gather((nnx.merge(graphdef, params)(normalize(batch['image'])), batch['label'], batch['mask']))

    self._step = strategy.compile(step, donate=False)
    self._put = strategy.put
    self._batches = data.eval_batches(split, batch_size)

  def __call__(self, params):
    """Returns {'mAP': 0..1}, the mean over the classes that any image has."""
    logits, labels = [], []
    for batch in self._batches:
      inputs = self._put({name: batch[name] for name in ('image', 'label', 'mask')})
      scores, truth, mask = jax.device_get(self._step(params, inputs))
      logits.append(scores[mask])
      labels.append(np.eye(scores.shape[-1])[truth[mask]] if truth.ndim == 1 else truth[mask])
    return {'mAP': mean_average_precision(np.concatenate(logits), np.concatenate(labels))}


def mean_average_precision(logits, labels):
  """The mean over classes of the area under precision over recall.

  Args:
    logits: (N, classes) scores.
    labels: (N, classes) of 0 and 1; classes without a 1 do not count.
  """
  from sklearn import metrics  # takes most of a second to import, and few runs need it
  present = labels.any(axis=0)
  return float(metrics.average_precision_score(labels[:, present], logits[:, present], average='macro'))

"""Accuracy and loss on a split, every example counted exactly once."""
from clu import metrics as clu_metrics
import flax
from flax import nnx
import jax


@flax.struct.dataclass
class EvalMetrics(clu_metrics.Collection):
  """Means over the examples that the mask admits."""
  loss: clu_metrics.Average.from_output('loss')
  accuracy: clu_metrics.Average.from_output('accuracy')


class Classification:
  """Evaluates a classifier.

  Args:
    graphdef: the model's NNX graph definition.
    objective: gives each example's loss and accuracy.
    normalize: from uint8 to float images.
    strategy: see `training.parallel`.
    data: the run's data, see `data.dataset`.
    batch_size: global batch.
    split: TFDS split string.
  """

  METRICS = ('accuracy', 'loss')

  def __init__(self, graphdef, objective, normalize, strategy, data, batch_size, *, split: str = 'test'):
    def step(params, batch):
      model = nnx.merge(graphdef, params)
      losses, values = objective(model, dict(batch, image=normalize(batch['image'])), None)
      return EvalMetrics.single_from_model_output(**strategy.gather(dict(values, loss=losses, mask=batch['mask'])))

    self._step = strategy.compile(step, donate=False)
    self._put = strategy.put
    self._batches = data.eval_batches(split, batch_size)

  def __call__(self, params):
    """Returns {'loss': mean nats, 'accuracy': 0..1} for parameters on the devices."""
    total = EvalMetrics.empty()
    for batch in self._batches:
      inputs = self._put({name: batch[name] for name in ('image', 'label', 'mask')})
      # Fetched at once: the host adds the sums in one order, and one program is in flight.
      total = total.merge(jax.device_get(self._step(params, inputs)))
    return {name: float(value) for name, value in total.compute().items()}

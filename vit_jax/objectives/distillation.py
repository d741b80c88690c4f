"""Distillation: a classifier learns from the labels and from a teacher (arXiv 1503.02531; DeiT, arXiv 2012.12877)."""
from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.objectives import losses
from vit_jax.objectives.base import TEACHER, ObjectiveContext, Outcome, mean_metric
from vit_jax.objectives.classification import is_correct


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """Section `objective` of a recipe with `kind='distillation'`.

  Attributes:
    kind: 'distillation'.
    teacher: the model to learn from, anything that `vit_jax.load` reads. Its classes must be those of the data.
    targets: 'hard', the teacher's best class is a second label (DeiT); or 'soft', its probabilities.
    alpha: share of the teacher in the loss, the rest is the labels'; in [0, 1].
    temperature: of both softmaxes with soft targets; with hard ones it must be 1.
    label_smoothing: of the labels, not of the teacher's; in [0, 1).
  """
  kind: str = 'distillation'
  teacher: str = ''
  targets: str = 'hard'
  alpha: float = 0.5
  temperature: float = 1.0
  label_smoothing: float = 0.0

  def __post_init__(self):
    choose(TARGETS, self.targets, 'objective.targets')
    if not self.teacher:
      raise UserError('objective.teacher: expected the model to learn from, a run directory, a file or a name of '
                      'public weights: --config.objective.teacher=SOURCE')
    if not 0.0 <= self.alpha <= 1.0:
      raise UserError(f'objective.alpha: must be in [0, 1], got {self.alpha}')
    if not self.temperature > 0:
      raise UserError(f'objective.temperature: must be positive, got {self.temperature}')
    if self.targets == 'hard' and self.temperature != 1.0:
      raise UserError(f"objective.temperature: objective.targets='hard' has none, got {self.temperature}; use "
                      "objective.targets='soft'")
    if not 0.0 <= self.label_smoothing < 1.0:
      raise UserError(f'objective.label_smoothing: must be in [0, 1), got {self.label_smoothing}')


class Distillation:
  """(1 - alpha) · cross-entropy with the labels + alpha · the teacher's loss.

  A model with `pool='distilled'` learns the labels with the head of its class token and the teacher with that of its
  distillation token (DeiT, section 4); any other model learns both with its only head. The teacher sees the image that
  the student sees, augmented and mixed, with its own normalization and at its own size.

  Args:
    config: options.
    context: of the run, with the teacher.

  Raises:
    UserError: a dataset with any number of classes per image, or a teacher whose outputs are no softmax's.
  """

  Config = DistillationConfig
  reads_labels = True
  metrics: Mapping[str, Literal['max', 'min']] = {'accuracy': 'max', 'teacher_accuracy': 'max', 'agreement': 'max'}

  def __init__(self, config: DistillationConfig, context: ObjectiveContext):
    if context.info.multi_label:
      raise UserError("objective.kind: 'distillation' takes one class per image, but this dataset has any number")
    assert context.teacher is not None, 'run/build loads the teacher'
    if config.targets == 'soft' and context.teacher.loss != 'softmax':
      raise UserError(f'objective.targets: {config.teacher} was trained with the loss {context.teacher.loss!r}, so its '
                      "classes have no common probabilities; use objective.targets='hard'")
    self.config, self._teacher, self._normalization = config, context.teacher, context.normalization
    self._two_heads = getattr(context.model.config, 'pool', None) == 'distilled'

  def init(self, params: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Return nothing: the teacher's parameters come with the averages, but are not among them; see `Teacher`."""
    del params, key
    return {}, {}

  def __call__(self, model: Any, own: Any, averages: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> Outcome:
    """Return the losses of a batch; see `Objective.__call__`."""
    del own
    config, images, labels = self.config, batch['image'], batch['label']
    by_head = model.logits_by_head(images, keys) if self._two_heads else model(images, keys)[:, None]
    teacher = jax.lax.stop_gradient(self._teacher.logits(averages[TEACHER], self._normalization.pixels(images)))
    of_labels = losses.softmax(by_head[:, 0], labels, config.label_smoothing)
    of_teacher = TARGETS[config.targets](by_head[:, -1], teacher, config.temperature)
    logits = by_head.mean(axis=1)
    agrees = (jnp.argmax(logits, axis=-1) == jnp.argmax(teacher, axis=-1)).astype(jnp.float32)
    metrics = dict(accuracy=is_correct(logits, labels), teacher_accuracy=is_correct(teacher, labels), agreement=agrees)
    return Outcome((1 - config.alpha) * of_labels + config.alpha * of_teacher,
                   {name: mean_metric(values, batch) for name, values in metrics.items()})

  def update(self, averages: Any, means: Any, params: Any) -> Any:
    """Return the averages, which are empty, as they are."""
    del means, params
    return averages


def hard(logits: Float[Array, 'batch classes'], teacher: Float[Array, 'batch classes'],
         temperature: float) -> Float[Array, ' batch']:
  """Return the cross-entropy with the teacher's best class (DeiT, arXiv 2012.12877, equation 3)."""
  del temperature
  return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.argmax(teacher, axis=-1))


def soft(logits: Float[Array, 'batch classes'], teacher: Float[Array, 'batch classes'],
         temperature: float) -> Float[Array, ' batch']:
  """Return temperature² · KL(teacher ‖ student) of the probabilities at a temperature.

  The square keeps the size of the gradients (arXiv 1503.02531, section 2; DeiT, equation 2). DeiT's code divides by the
  number of classes too, its paper does not.
  """
  scores, targets = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher))
  return temperature ** 2 * (jnp.exp(targets) * (targets - scores)).sum(axis=-1)


# (student's logits, teacher's logits, temperature) → losses.
TARGETS = {'hard': hard, 'soft': soft}

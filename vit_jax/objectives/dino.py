"""DINO: self-distillation without labels (arXiv 2104.14294): a student learns the output of its own moving average."""
from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.base.durations import Duration
from vit_jax.base.errors import UserError
from vit_jax.models.positions.resize import at_image_size
from vit_jax.objectives import projection_head
from vit_jax.objectives.base import EMA, OBJECTIVE, ObjectiveContext, Outcome, mean_metric, random_keys
from vit_jax.objectives.views.colors import ColorJitter
from vit_jax.objectives.views.crops import CropKind, crop

# Streams of an example's keys: of its global and its local crops; and, from the third on, of the dropout of each crop.
_GLOBAL, _LOCAL, _DROPOUT = range(0x64696E00, 0x64696E03)
_RATES = ('momentum', 'center_momentum')
_POSITIVE = ('student_temperature', 'teacher_temperature', 'first_teacher_temperature')


@dataclasses.dataclass(frozen=True)
class DinoConfig:
  """Section `objective` of a recipe with `kind='dino'`; the defaults are those of the authors' code for ViTs.

  Attributes:
    kind: 'dino'.
    outputs: prototypes, the outputs of the projection head.
    hidden: features of its two hidden layers.
    bottleneck: features before its last layer.
    global_area: smallest and largest share of the image that each of the two global crops covers. They have the size
      that the model takes. 0.25 is the authors' for long runs of ViT-S/16, 0.4 their code's default.
    local_crops: number of local crops, which only the student sees.
    local_area: as `global_area`; their code's default is (0.05, 0.4).
    local_size: (rows, columns) of a local crop in pixels, whole patches.
    flip: whether crops are mirrored at random.
    colors: factor of the strength of random colors (see `views.colors.ColorJitter`); 0: none, nor solarization.
    blur: largest standard deviation of the random blur, in pixels of the crop; 0: none. The authors blur the first
      global crop always, the second with probability 0.1, local crops with 0.5.
    student_temperature: of the student's softmax.
    teacher_temperature: of the teacher's, after its warm-up.
    first_teacher_temperature: before it.
    temperature_warmup: how long the teacher's temperature rises linearly.
    momentum: of the teacher at first; rises to 1 by a cosine. Higher for small batches: 0.9995 for 256.
    center_momentum: of the mean of the teacher's outputs, which is subtracted from them.
    freeze_last_layer: how long the head's last layer gets no gradient.
  """
  kind: str = 'dino'
  outputs: int = 65536
  hidden: int = 2048
  bottleneck: int = 256
  global_area: tuple[float, ...] = (0.25, 1.0)
  local_crops: int = 8
  local_area: tuple[float, ...] = (0.05, 0.25)
  local_size: tuple[int, int] = (96, 96)
  flip: bool = True
  colors: float = 1.0
  blur: float = 2.0
  student_temperature: float = 0.1
  teacher_temperature: float = 0.04
  first_teacher_temperature: float = 0.04
  temperature_warmup: Duration = Duration(0)
  momentum: float = 0.996
  center_momentum: float = 0.9
  freeze_last_layer: Duration = Duration(1, 'epoch')

  def __post_init__(self):
    for name in ('outputs', 'hidden', 'bottleneck'):
      if getattr(self, name) < 1:
        raise UserError(f'objective.{name}: must be at least 1, got {getattr(self, name)}')
    for name in ('local_crops', 'colors', 'blur'):
      if getattr(self, name) < 0:
        raise UserError(f'objective.{name}: must be at least 0, got {getattr(self, name)}')
    for name in ('global_area', 'local_area'):
      area = getattr(self, name)
      if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(f'objective.{name}: expected the smallest and the largest share of the image, in (0, 1], got '
                        f'{area}')
    for name in _RATES:
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f'objective.{name}: must be in [0, 1), got {getattr(self, name)}')
    for name in _POSITIVE:
      if not getattr(self, name) > 0:
        raise UserError(f'objective.{name}: must be positive, got {getattr(self, name)}')


class Dino:
  """The cross-entropy between the outputs of a teacher and a student for different crops of an image.

  The student owns a projection head. The teacher, a moving average of the student and its head, is among the running
  averages as `ema`; so evaluations report it as 'NAME_ema/…', and `load(ema=True)` gives it.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: local crops of a size that the model cannot take.
  """

  Config = DinoConfig
  reads_labels = False
  metrics: Mapping[str, Literal['max', 'min']] = {'kl': 'min', 'teacher_entropy': 'max', 'teacher_std': 'max'}

  def __init__(self, config: DinoConfig, context: ObjectiveContext):
    self.config, self._normalization, self._num_steps = config, context.normalization, context.num_steps
    self._warmup = context.pace.steps(config.temperature_warmup)
    self._frozen = context.pace.steps(config.freeze_last_layer)
    self._dtype, self._channels = context.model.config.dtype, context.model.channels
    self._graphdef, _ = nnx.split(context.model, nnx.Param)
    self._at_local_size = at_image_size(context.model, config.local_size,
                                        'objective.local_size') if config.local_crops else None
    common: dict[str, Any] = dict(flip=config.flip, colors=ColorJitter().scaled(config.colors), blur=config.blur)
    solarize = (0.0, 0.2) if config.colors else (0.0,)
    self._global = CropKind(2, context.model.image_size, _pair(config.global_area), blur_chance=(1.0, 0.1),
                            solarize_chance=solarize, **common)
    self._local = CropKind(config.local_crops, config.local_size, _pair(config.local_area), blur_chance=(0.5,),
                           **common)

  def init(self, params: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Return the projection head, and the teacher (equal to the student) with its center; see `Objective.init`."""
    config, (rows, columns) = self.config, self._global.size
    images = jax.ShapeDtypeStruct((1, rows, columns, self._channels), jnp.float32)
    features = jax.eval_shape(lambda params, images: nnx.merge(self._graphdef, params)(images), params, images)
    own = dict(head=projection_head.init(key, features.shape[-1], config.hidden, config.bottleneck, config.outputs))
    # Copies: two leaves of a donated state must not share a buffer.
    teacher = jax.tree.map(jnp.copy, {**params, OBJECTIVE: own})
    step = jnp.zeros((), jnp.int32)
    return own, {EMA: teacher, 'center': jnp.zeros(config.outputs), 'step': step,
                 'temperature': self._temperature(step)}

  def __call__(self, model: Any, own: Any, averages: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> Outcome:
    """Return the losses of a batch; see `Objective.__call__`."""
    pixels = jnp.clip(self._normalization.pixels(batch['image']), 0, 1)
    views = lambda kind, stream: self._normalization.standardize(crop(pixels, random_keys(batch, keys, stream), kind))
    global_views, head = views(self._global, _GLOBAL), self._head_of_step(own['head'], averages['step'])
    teacher = self._outputs(self._teacher(averages[EMA]), averages[EMA][OBJECTIVE]['head'], global_views, None, 0)
    student = self._outputs(model, head, global_views, keys, 0)
    if self._at_local_size is not None:
      local = self._outputs(self._at_local_size(model), head, views(self._local, _LOCAL), keys, 2)
      student = jnp.concatenate([student, local], axis=1)
    centered = teacher - averages['center']
    targets = jax.nn.softmax(centered / averages['temperature'])
    losses = cross_entropies(targets, student / self.config.student_temperature)
    entropy = jax.scipy.special.entr(targets).sum(axis=-1).mean(axis=1)
    metrics = dict(kl=losses - entropy, teacher_entropy=entropy, teacher_std=centered.std(axis=-1).mean(axis=1))
    return Outcome(losses, {name: mean_metric(values, batch) for name, values in metrics.items()},
                   dict(center=teacher.mean(axis=(0, 1))))

  def update(self, averages: Any, means: Any, params: Any) -> Any:
    """Return the averages after a step: the teacher moves towards the student, the center towards the batch's."""
    step, config = averages['step'], self.config
    rise = (1 + jnp.cos(math.pi * step.astype(jnp.float32) / self._num_steps)) / 2
    moved = lambda old, new, rate: old + rate * (new - old)
    return {
        EMA: jax.tree.map(lambda old, new: moved(old, new, (1 - config.momentum) * rise), averages[EMA], params),
        'center': moved(averages['center'], means['center'], 1 - config.center_momentum),
        'step': step + 1,
        # Kept, as an evaluation may have batches of another size, and so another number of steps per epoch.
        'temperature': self._temperature(step + 1)}

  def _teacher(self, params: Any) -> Any:
    return nnx.merge(self._graphdef, {name: leaf for name, leaf in params.items() if name != OBJECTIVE})

  def _temperature(self, step: Array) -> Array:
    first, last = self.config.first_teacher_temperature, self.config.teacher_temperature
    risen = jnp.minimum(1.0, step / self._warmup) if self._warmup else 1.0
    return jnp.asarray(first + (last - first) * risen, jnp.float32)

  def _head_of_step(self, head: Any, step: Array) -> Any:
    """Return the head such that its last layer gets no gradient in the first steps."""
    if not self._frozen:
      return head
    kernel = head['prototypes']['kernel']
    kernel = jnp.where(step < self._frozen, jax.lax.stop_gradient(kernel), kernel)
    return dict(head, prototypes=dict(kernel=kernel))

  def _outputs(self, model: Any, head: Any, views: Float[Array, 'batch crops rows columns channels'],
               keys: jax.Array | None, first: int) -> Float[Array, 'batch crops outputs']:
    """Return what model and head give for crops; crop i's dropout has the stream `first` + i of the example's key."""
    batch, crops = views.shape[:2]
    if keys is not None:
      numbers = _DROPOUT + first + jnp.arange(crops, dtype=jnp.uint32)
      keys = jax.vmap(lambda key: jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers))(keys).reshape(-1)
    features = model(views.reshape(-1, *views.shape[2:]), keys)
    return projection_head.project(head, features, self._dtype).reshape(batch, crops, -1)


def cross_entropies(targets: Float[Array, 'batch teachers outputs'],
                    logits: Float[Array, 'batch crops outputs']) -> Float[Array, ' batch']:
  """Return the mean cross-entropy over all pairs of a teacher's and a student's crop, except of a crop with itself.

  Args:
    targets: probabilities that the teacher gives for the first crops.
    logits: of the student for all crops, already divided by its temperature.
  """
  teachers, crops = targets.shape[1], logits.shape[1]
  scores = jax.nn.log_softmax(logits)
  pairs = jnp.einsum('bto,bco->btc', targets, scores, precision=jax.lax.Precision.HIGHEST)
  different = 1.0 - jnp.eye(teachers, crops)
  return -(pairs * different).sum(axis=(1, 2)) / different.sum()


def _pair(area: tuple[float, ...]) -> tuple[float, float]:
  return float(area[0]), float(area[1])

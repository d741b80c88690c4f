"""Learning-rate schedules: from a step to a learning rate."""
from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A learning rate that rises linearly from 0 during the warm-up, follows a shape, and may cool down linearly to 0.

  Attributes:
    shape: a name of `SHAPES`: what comes after the warm-up.
    num_steps: length of the run.
    peak_lr: learning rate at the end of the warm-up.
    end_lr: where the 'linear' shape ends (the authors' code: 1e-5).
    warmup: steps of linear rise.
    cooldown: last steps, falling linearly to 0.
    timescale: steps over which 'rsqrt' falls by the square root of two (big_vision: 10,000).
    drops: fractions of the run after which 'stairs' falls to a tenth.
  """
  shape: str
  num_steps: int
  peak_lr: float
  end_lr: float = 0.0
  warmup: int = 0
  cooldown: int = 0
  timescale: float = 10_000.0
  drops: tuple[float, ...] = ()

  def __call__(self, step: ArrayLike) -> jax.Array:
    """Return the learning rate of a step, () float32; steps count from 0."""
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - self.warmup) / max(self.num_steps - self.warmup, 1), 0.0, 1.0)
    end = self.end_lr if self.shape == 'linear' else 0.0
    after = jnp.maximum(step - self.warmup, 0.0) / self.timescale
    dropped = sum(jnp.asarray(step >= drop * self.num_steps, jnp.float32) for drop in self.drops)
    fraction = SHAPES[self.shape](progress, after, dropped)
    rise = jnp.minimum(1.0, step / self.warmup) if self.warmup else 1.0
    fall = jnp.minimum(1.0, (self.num_steps - step) / self.cooldown) if self.cooldown else 1.0
    return jnp.asarray((end + (self.peak_lr - end) * fraction) * rise * fall, jnp.float32)


# shape(progress 0..1 after the warm-up, time scales after the warm-up, drops so far) → 1..0, the way from the peak to
# the end.
SHAPES: dict[str, Callable[[jax.Array, jax.Array, ArrayLike], ArrayLike]] = {
    'constant': lambda progress, after, dropped: 1.0,
    'cosine': lambda progress, after, dropped: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    'linear': lambda progress, after, dropped: 1.0 - progress,
    'rsqrt': lambda progress, after, dropped: 1.0 / jnp.sqrt(1.0 + after),
    'stairs': lambda progress, after, dropped: 0.1 ** dropped,
}

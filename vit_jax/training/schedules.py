"""Learning-rate schedules: from a step to a learning rate.

All rise linearly from 0 during the warm-up; the shape after it is a row of `SHAPES`; a cool-down, if any, then falls
linearly to 0 over the last steps.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError


def build(total_steps: int, *, name: str, peak_lr: float, end_lr: float, warmup: int, cooldown: int,
          timescale: float) -> Callable[[ArrayLike], jax.Array]:
  """Return a function of the step that gives the learning rate, float32.

  Args:
    total_steps: length of the run.
    name: a name of `SHAPES`.
    peak_lr: learning rate at the end of the warm-up.
    end_lr: where the linear shape ends (the authors' code: 1e-5).
    warmup: steps of linear rise.
    cooldown: last steps, falling linearly to 0.
    timescale: steps over which 'rsqrt' falls by the square root of two (big_vision: 10,000).

  Raises:
    UserError: an unknown name, or warm-up and cool-down longer than the run.
  """
  shape = choose(SHAPES, name, 'optim.schedule')
  if warmup + cooldown > total_steps:
    raise UserError(f'optim.warmup: the warm-up ({warmup} steps) and the cool-down ({cooldown} steps) are longer than '
                    f'the run ({total_steps} steps). Shorten them or lengthen train.duration')

  def schedule(step: ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
    rate = shape(progress, jnp.maximum(step - warmup, 0.0), peak_lr, end_lr, timescale)
    rise = jnp.minimum(1.0, step / warmup) if warmup else 1.0
    fall = jnp.minimum(1.0, (total_steps - step) / cooldown) if cooldown else 1.0
    return jnp.asarray(rate * rise * fall, jnp.float32)

  return schedule


# shape(progress 0..1 after the warm-up, steps after the warm-up, peak_lr, end_lr, timescale).
SHAPES: dict[str, Callable[..., ArrayLike]] = {
    'constant': lambda progress, after, peak, end, timescale: peak,
    'cosine': lambda progress, after, peak, end, timescale: peak * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    'linear': lambda progress, after, peak, end, timescale: end + (peak - end) * (1.0 - progress),
    'rsqrt': lambda progress, after, peak, end, timescale: peak / jnp.sqrt(1.0 + after / timescale),
}

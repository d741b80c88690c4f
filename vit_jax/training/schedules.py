"""Learning-rate schedules: a step to a learning rate.

All rise linearly from 0 over the warm-up; the shape after it is in `SHAPES`; a cool-down, where asked for, takes the
last steps linearly to 0.
"""
import jax.numpy as jnp

from vit_jax.base.choices import choose


def build(total_steps, *, name, peak_lr, end_lr, warmup, cooldown, timescale):
  """Returns schedule(step) → learning rate, float32.

  Args:
    total_steps: length of the run.
    name: a name of `SHAPES`.
    peak_lr: the learning rate at the end of the warm-up.
    end_lr: what the linear shape ends at (the authors' code: 1e-5).
    warmup: steps of linear rise.
    cooldown: last steps, falling linearly to 0.
    timescale: steps over which 'rsqrt' falls by the square root of two (big_vision: 10,000).

  Raises:
    ValueError: an unknown name, or warm-up and cool-down longer than the run.
  """
  shape = choose(SHAPES, name, 'schedule')
  if warmup + cooldown > total_steps:
    raise ValueError(f'the warm-up ({warmup} steps) and the cool-down ({cooldown} steps) are longer than '
                     f'the run ({total_steps} steps); shorten optim.warmup or lengthen train.duration')

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
    rate = shape(progress, jnp.maximum(step - warmup, 0.0), peak_lr, end_lr, timescale)
    rise = jnp.minimum(1.0, step / warmup) if warmup else 1.0
    fall = jnp.minimum(1.0, (total_steps - step) / cooldown) if cooldown else 1.0
    return jnp.asarray(rate * rise * fall, jnp.float32)

  return schedule


# shape(progress 0..1 after the warm-up, steps after the warm-up, peak_lr, end_lr, timescale).
SHAPES = {
    'constant': lambda progress, after, peak, end, timescale: peak,
    'cosine': lambda progress, after, peak, end, timescale: peak * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    'linear': lambda progress, after, peak, end, timescale: end + (peak - end) * (1.0 - progress),
    'rsqrt': lambda progress, after, peak, end, timescale: peak / jnp.sqrt(1.0 + after / timescale),
}

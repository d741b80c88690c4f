"""What a run warns of when it starts."""
import pytest

from vit_jax.base.durations import Duration
from vit_jax.run.config import TrainConfig
from vit_jax.run.start import ema_warning


def warning(num_steps, **keys):
  return ema_warning(TrainConfig(Duration(num_steps), **keys), num_steps)


def test_an_ema_that_is_still_its_start_is_a_warning():
  assert warning(500, ema_decay=0.9999) == (
      'warning: train.ema_decay: after all 500 steps the EMA is still 95% initial parameters, because 0.9999 averages '
      'over about 10,000 steps. Set train.ema_warmup=True, or train.ema_decay=0.98')
  assert 'is still 31% initial' in warning(11_700, ema_decay=0.9999)  # 0.9999^11,700 = 0.3104


@pytest.mark.parametrize('num_steps, keys', [
    (12_100, dict(ema_decay=0.9999)), (500, dict(ema_decay=0.99)), (500, dict()),
    (500, dict(ema_decay=0.9999, ema_warmup=True))])
def test_an_ema_that_forgets_its_start_is_none(num_steps, keys):
  assert warning(num_steps, **keys) is None


@pytest.mark.parametrize('num_steps', [20, 500, 5000, 20_000])
def test_the_decay_that_the_warning_proposes_forgets(num_steps):
  proposed = float(warning(num_steps, ema_decay=0.99999).rpartition('=')[2])
  assert proposed**num_steps < 1e-4

"""Durations: parsing, and conversion against exact fractions."""
from fractions import Fraction
import math

import pytest

from vit_jax.base.durations import Duration, Interval, Pace
from vit_jax.base.errors import UserError


def to_steps(text, batch_size=8, examples=100):
  return Pace(batch_size, examples).steps(Duration.parse(text, 'train.duration'))


@pytest.mark.parametrize('text, expected', [
    ('10_000 steps', (10_000.0, 'step')),
    ('1 step', (1.0, 'step')),
    ('90 epochs', (90.0, 'epoch')),
    ('0.5 epochs', (0.5, 'epoch')),
    ('5e6 examples', (5e6, 'example')),
    ('1.5e3 examples', (1500.0, 'example')),
    ('  3   epoch ', (3.0, 'epoch')),
])
def test_parse(text, expected):
  duration = Duration.parse(text, 'x')
  assert (duration.number, duration.unit) == expected
  assert Duration.parse(str(duration), 'x') == duration == Duration.parse(duration, 'x')


@pytest.mark.parametrize('text', [
    '', '10', 'ten steps', '-1 steps', '+1 steps', '1e-3 epochs', '10 hours', '10 stepss', 'steps', '_1 steps',
    '1 2 steps', '10 steps\n5', 10, 10.0, None, ['10 steps'], '10 minutes'])
def test_other_text_is_refused(text):
  with pytest.raises(UserError, match=r"^optim.warmup: expected a duration such as '1_000 steps'.* got ") as error:
    Duration.parse(text, 'optim.warmup')
  assert repr(text) in str(error.value)
  assert 'minutes' not in str(error.value).split('got')[0]


def test_a_number_that_is_too_large_is_refused():
  with pytest.raises(UserError, match='^x: .* is too large'):
    Duration.parse('1e999 steps', 'x')


def test_only_an_interval_may_be_a_time():
  interval = Interval.parse('10 minutes', 'x')
  assert interval.minutes == 10.0 and interval == Interval(10, 'minute')
  assert Interval.parse('10 steps', 'x').minutes is None
  with pytest.raises(UserError, match="or '10 minutes', got '10 hours'"):
    Interval.parse('10 hours', 'x')


@pytest.mark.parametrize('text, expected', [
    ('7 steps', 7), ('0 steps', 0), ('0 epochs', 0), ('0.4 steps', 1), ('1.4 steps', 1), ('1.5 steps', 2),
    ('2.5 steps', 3),
    ('1 epoch', 13),  # 12.5
    ('2 epochs', 25), ('0.001 epochs', 1), ('1_000 epochs', 12_500),
    ('1 example', 1), ('8 examples', 1), ('12 examples', 2), ('20 examples', 3), ('800 examples', 100)])
def test_steps(text, expected):
  steps = to_steps(text)
  assert steps == expected
  assert isinstance(steps, int)


@pytest.mark.parametrize('epochs', [1, 3, 14])
def test_epochs_round_to_the_nearest_step_half_up(epochs):
  for batch_size in (2, 6, 7, 24, 48, 64):
    for examples in range(batch_size, 250):
      exact = Fraction(epochs * examples, batch_size)
      expected = math.floor(exact + Fraction(1, 2))
      assert to_steps(f'{epochs} epochs', batch_size=batch_size, examples=examples) == expected, (batch_size, examples)


def test_the_papers_runs():
  # 1,281,167 images for 300 epochs at batch 4096; 7 epochs of JFT's 303M: about 93.8k and 517.8k steps.
  assert to_steps('300 epochs', batch_size=4096, examples=1_281_167) == 93_835
  assert to_steps('7 epochs', batch_size=4096, examples=303_000_000) == 517_822

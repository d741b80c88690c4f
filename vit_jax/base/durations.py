"""Durations: written in steps, epochs or examples, counted by the loop in steps."""
import dataclasses
import math
import re

from vit_jax.base.errors import UserError

_TEXT = re.compile(r'\s*(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s+(steps?|epochs?|examples?|minutes?)\s*')


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training, such as '10_000 steps', '90 epochs' or '5e6 examples'.

  Attributes:
    number: how many, finite and not negative.
    unit: 'step', 'epoch' or 'example'.
  """
  number: float
  unit: str = 'step'

  UNITS = ('step', 'epoch', 'example')

  @classmethod
  def parse(cls, text: object, key: str) -> 'Duration':
    """Read a duration from a config.

    Args:
      text: what the config says.
      key: config key, for the error.

    Raises:
      UserError: the text is not a duration in one of the units.
    """
    if isinstance(text, Duration):
      text = str(text)
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    unit = found[2].removesuffix('s') if found else None
    if not found or unit not in cls.UNITS:
      more = " or '10 minutes'" if 'minute' in cls.UNITS else ''
      hint = f'{text!r}; write \'{text} steps\'' if type(text) is int else repr(text)
      raise UserError(f"{key}: expected a duration such as '1_000 steps', '90 epochs', '5e6 examples'{more}, "
                      f'got {hint}')
    number = float(found[1].replace('_', ''))
    if not math.isfinite(number):
      raise UserError(f'{key}: {text!r} is too large for a number')
    return cls(number, str(unit))

  def __str__(self) -> str:
    number = int(self.number) if self.number == int(self.number) else self.number
    return f'{number} {self.unit}s'


@dataclasses.dataclass(frozen=True)
class Pace:
  """How many examples a step and an epoch take: what turns durations into steps.

  Attributes:
    batch_size: global examples per step.
    examples: examples per epoch, counting repeats.
  """
  batch_size: int
  examples: int

  def steps(self, duration: Duration) -> int:
    """Return a duration in optimizer steps, rounded to the nearest, at least 1 unless it is zero.

    >>> Pace(1024, 1_281_167).steps(Duration.parse('90 epochs', 'train.duration'))
    112603
    """
    if duration.number == 0:
      return 0
    per_unit = {'step': 1.0, 'epoch': self.examples / self.batch_size, 'example': 1 / self.batch_size}[duration.unit]
    # Half a step rounds up whatever the parity (round() would go to the even neighbor).
    return max(1, math.floor(duration.number * per_unit + 0.5))


@dataclasses.dataclass(frozen=True)
class Interval(Duration):
  """A duration that may also be a wall-clock time, such as '10 minutes'."""

  UNITS = (*Duration.UNITS, 'minute')

  @property
  def minutes(self) -> float | None:
    """Minutes, or None if the interval is counted in steps."""
    return self.number if self.unit == 'minute' else None

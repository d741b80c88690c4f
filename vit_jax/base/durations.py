"""Durations: what people write in steps, epochs or examples, the loop counts in steps.

A builder's argument annotated `Steps` is written in a config as text such as '10_000 steps', '90 epochs' or
'5e6 examples'; one annotated `Interval` may also be a time, '10 minutes'.  This is the only place that converts.
"""
import math
import re
from typing import NewType

Steps = NewType('Steps', int)
Interval = NewType('Interval', object)  # Steps, or a Minutes

_TEXT = re.compile(r'\s*(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s+(steps?|epochs?|examples?|minutes?)\s*')


class Minutes(float):
  """A wall-clock interval."""


def parse(text, name, annotation=Steps):
  """Splits '90 epochs' into (90.0, 'epoch').

  Raises:
    ValueError: the text is no duration, or a time where steps are needed; `name` is the config key it came from.
  """
  found = _TEXT.fullmatch(text) if isinstance(text, str) else None
  unit = found and found[2].removesuffix('s')
  if not found or (unit == 'minute' and annotation is not Interval):
    more = " or '10 minutes'" if annotation is Interval else ''
    raise ValueError(f"{name}: expected a duration such as '1_000 steps', '90 epochs', '5e6 examples'{more}, got {text!r}")
  number = float(found[1].replace('_', ''))
  if not math.isfinite(number):
    raise ValueError(f'{name}: {text!r} is longer than a number can say')
  return number, unit


def to_steps(text, name, annotation, *, batch_size, examples):
  """Converts a duration to optimizer steps (rounded, at least 1 unless it is zero), or to `Minutes`.

  Args:
    text: the duration.
    name: the config key, for the error.
    annotation: `Steps` or `Interval`.
    batch_size: global examples a step.
    examples: examples an epoch.
  """
  number, unit = parse(text, name, annotation)
  if unit == 'minute':
    return Minutes(number)
  if number == 0:
    return 0
  steps = {'step': number, 'epoch': number * examples / batch_size, 'example': number / batch_size}[unit]
  # Half a step rounds up whatever the parity (round() would go to the even neighbour).
  return max(1, math.floor(steps + 0.5))

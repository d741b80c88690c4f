"""Judge the loss of every step: steps that were skipped, and spikes."""
import collections
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.sections import off

_SIGMA = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
# A spike is also a rise by this part of the first losses of the run: late in training the losses are tiny, their
# spread is tinier, and a hard example is many times that.
_LEAST_RISE = 0.25
_LEAST_LOSSES = 16  # before a loss is judged


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """Section `guard` of a recipe: what a run does about numbers that went wrong.

  A step whose loss or gradient is not finite is always skipped.

  Attributes:
    skipped: steps skipped in a row after which the run rolls back to its last checkpoint.
    spike: robust z-score of a step's loss above which the run rolls back, if the loss has also risen by a quarter of
      the run's first losses; None, or 0: never.
    window: losses of how many of the last steps the score compares with.
    rollbacks: how often the run may roll back before it has gone `window` steps beyond the last trouble; then it stops.
    recompute: every how many steps the gradient is computed a second time, and on other devices if there are several,
      to find devices that compute wrong numbers; None, or 0: never.
  """
  skipped: int = 10
  spike: float | None = off(0, 0.0, default=10.0)
  window: int = 128
  rollbacks: int = 3
  recompute: int | None = off(0)

  def __post_init__(self):
    for name, least in dict(skipped=1, window=_LEAST_LOSSES, rollbacks=0, recompute=1).items():
      number = getattr(self, name)
      if number is not None and number < least:
        raise UserError(f'guard.{name}: must be at least {least}, got {number}')
    if self.spike is not None and not 0.0 < self.spike < math.inf:
      raise UserError(f'guard.spike: expected a positive score, or 0 for off, got {self.spike}')


@dataclasses.dataclass(frozen=True)
class Trouble:
  """What makes a run roll back.

  Attributes:
    reason: in words, for a person.
    first: step that went wrong; a checkpoint of an earlier one is good.
    last: step up to which the batches are examined for a cause; `first - 1` if no batch can be the cause.
    statistics: {name: number}, for the report.
    devices: that computed something wrong.
  """
  reason: str
  first: int
  last: int
  statistics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  devices: tuple[str, ...] = ()


class LossWatch:
  """The losses of the last steps, and what they say of the next.

  Args:
    config: what is trouble.
    stored: what `to_json` returned at the step that the run resumes from; {}: the run begins.

  Attributes:
    skipped: steps skipped so far.
    in_a_row: how many of them were the last steps.
  """

  def __init__(self, config: GuardConfig, stored: Mapping[str, Any]):
    self._config = config
    self._losses: collections.deque[float] = collections.deque(stored.get('losses', ()), config.window)
    self._start: float | None = stored.get('start')
    self.skipped: int = stored.get('skipped', 0)
    self.in_a_row = 0  # no checkpoint is saved in the middle of skipped steps

  def to_json(self) -> dict[str, Any]:
    """Return what a run needs to resume with the same judgement."""
    return dict(losses=list(self._losses), start=self._start, skipped=self.skipped)

  def add(self, step: int, loss: float) -> Trouble | None:
    """Take the next step's loss, NaN if it was skipped; return what is wrong, or None."""
    if math.isnan(loss):
      self.skipped += 1
      self.in_a_row += 1
      return self.streak(step) if self.in_a_row >= self._config.skipped else None
    before, self.in_a_row = self.in_a_row, 0
    limit = self.limit()
    if limit is not None and loss > limit:
      what = f'it was skipped, then the loss of step {step}' if before else 'its loss'
      return Trouble(f'{what} is {loss:.4g}, above the limit of {limit:.4g}', step - before, step,
                     self.statistics(loss))
    self._losses.append(loss)
    if self._start is None and len(self._losses) == _LEAST_LOSSES:
      self._start = float(np.median(self._losses))
    return None

  def streak(self, step: int) -> Trouble:
    """Return the trouble of having skipped the last steps, up to `step`."""
    first = step - self.in_a_row + 1
    what = 'it was' if first == step else f'it and the steps up to {step} were'
    return Trouble(f'{what} skipped, because loss or gradient were not finite', first, step,
                   dict(self.statistics(), skipped_in_a_row=self.in_a_row))

  def limit(self) -> float | None:
    """Return the loss above which the next step is a spike; None if there are too few losses to judge."""
    if self._config.spike is None or self._start is None:
      return None
    middle, sigma = self._middle()
    return middle + max(self._config.spike * sigma, _LEAST_RISE * abs(self._start))

  def usual(self) -> float:
    """Return the upper end of what losses usually are: three standard deviations above their median."""
    middle, sigma = self._middle()
    return middle + 3 * sigma

  def statistics(self, loss: float | None = None) -> dict[str, float]:
    """Return {name: number} of the losses, and of one that is judged by them."""
    if not self._losses:
      return {}
    middle, sigma = self._middle()
    found = dict(median_loss=middle, loss_sigma=sigma)
    return found if loss is None else dict(found, loss=loss, score=(loss - middle) / sigma if sigma else math.inf)

  def _middle(self) -> tuple[float, float]:
    """Return the median of the losses, and a robust estimate of their standard deviation."""
    losses = np.array(self._losses)
    middle = float(np.median(losses))
    return middle, _SIGMA * float(np.median(np.abs(losses - middle)))

"""Config sections: dataclasses from dictionaries and back."""
import dataclasses

import pytest

from vit_jax.base import sections
from vit_jax.base.durations import Duration, Interval
from vit_jax.base.errors import UserError
from vit_jax.base.sections import derived, from_data, off, section


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  every: Interval = Interval(10, 'minute')


@dataclasses.dataclass(frozen=True)
class Outer:
  name: str
  length: Duration
  inner: Inner = section(Inner)
  remat: str | None = off('none')
  position: str | None = off('none', default='learned')
  alpha: float | None = off(0, 0.0)
  width: int = derived()
  size: tuple[int, int] = (8, 8)
  options: dict[str, float] = dataclasses.field(default_factory=dict)
  flags: tuple | None = None
  classes: int = from_data(10)

  def __post_init__(self):
    if self.width is None:
      object.__setattr__(self, 'width', 3)


def read(**values):
  return sections.read(Outer, dict(name='x', length='1 steps', **values), 'outer')


def test_defaults():
  outer = read()
  assert outer == Outer('x', Duration(1), Inner(), None, 'learned', None, 3, (8, 8), {}, None, 10)


@pytest.mark.parametrize('values, field, expected', [
    (dict(remat='none'), 'remat', None), (dict(remat=None), 'remat', None), (dict(remat='full'), 'remat', 'full'),
    (dict(position='none'), 'position', None), (dict(position='sincos'), 'position', 'sincos'),
    (dict(alpha=0), 'alpha', None), (dict(alpha=0.0), 'alpha', None), (dict(alpha=1), 'alpha', 1.0),
    (dict(width=None), 'width', 3), (dict(width=7), 'width', 7),
    (dict(size=4), 'size', (4, 4)), (dict(size=[4, 6]), 'size', (4, 6)),
    (dict(options=None), 'options', {}), (dict(options={'a': 1.0}), 'options', {'a': 1.0}),
    (dict(flags=[1, 2]), 'flags', (1, 2)), (dict(inner={'rate': 1}), 'inner', Inner(1.0)),
    (dict(inner={'every': '5 steps'}), 'inner', Inner(every=Interval(5))), (dict(inner=None), 'inner', Inner())])
def test_values_are_brought_into_the_form_of_their_field(values, field, expected):
  found = getattr(read(**values), field)
  assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize('values, message', [
    (dict(classes=3), 'outer.classes: unknown config key; valid keys are'),
    (dict(sise=4), "outer.sise: unknown config key; did you mean outer.size?"),
    (dict(inner={'rat': 1}), 'outer.inner.rat: unknown config key; did you mean outer.inner.rate?'),
    (dict(inner=3), 'outer.inner: expected a section, {key: value}, got 3'),
    (dict(inner={'rate': 'x'}), "outer.inner.rate: expected a number, got 'x'"),
    (dict(alpha=False), 'outer.alpha: expected a number or None, got False'),
    (dict(size=0), 'outer.size: expected a positive number'), (dict(size=(1, 2, 3)), 'outer.size: expected'),
    (dict(size=True), 'outer.size: expected'), (dict(remat=3), 'outer.remat: expected text or None, got 3')])
def test_errors_start_with_the_key(values, message):
  with pytest.raises(UserError) as error:
    read(**values)
  assert str(error.value).startswith(message)


def test_a_missing_key_is_named():
  with pytest.raises(UserError, match="^outer.length: missing; expected a duration"):
    sections.read(Outer, {'name': 'x'}, 'outer')


def test_plain_values_and_back():
  outer = read(size=4, inner={'every': '5 steps'}, flags=[1], options={'b': 2.0}, alpha=0.25)
  values = sections.to_dict(outer)
  assert values == dict(name='x', length='1 steps', inner=dict(rate=0.5, every='5 steps'), remat=None, position='learned',
                        alpha=0.25, width=3, size=[4, 4], options={'b': 2.0}, flags=[1])
  assert sections.read(Outer, values, 'outer') == outer

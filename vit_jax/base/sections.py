"""Config sections: frozen dataclasses read from, and written to, plain dictionaries.

A section is a frozen dataclass whose fields are the config keys: their types and defaults are checked here, their
values in the dataclass's own `__post_init__`.  Three kinds of field differ from the plain ones:

  remat: str | None = off('none')      # 'none' in a recipe becomes None: "off" has one spelling inside
  width: int = derived()               # None: `__post_init__` derives it from other fields
  num_classes: int = from_data(1000)   # set by the data, not by the config

A field of type `tuple[int, int]` is a size, (rows, columns); a number in a recipe stands for a square.
"""
from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import functools
import types
import typing
from typing import Any, TypeVar

import numpy as np

from vit_jax.base.durations import Duration
from vit_jax.base.errors import UserError

S = TypeVar('S')

_IN_WORDS = {int: 'a whole number', float: 'a number', str: 'text', bool: 'True or False', type(None): 'None'}


def off(*spellings: object, default: object = None) -> Any:
  """Return a field that is None if a recipe gives one of `spellings` of "off"."""
  return dataclasses.field(default=default, metadata={'off': spellings})


def derived() -> Any:
  """Return a field that is None until `__post_init__` derives it from other fields."""
  return dataclasses.field(default=None, metadata={'derived': True})


def from_data(default: object, *spellings: object) -> Any:
  """Return a field that is not a config key, but filled in from the data; None for one of `spellings` of "off"."""
  return dataclasses.field(default=default, metadata={'from_data': True, 'off': spellings})


def section(cls: type, **changes: object) -> Any:
  """Return a field that holds a section, `cls(**changes)` by default."""
  return dataclasses.field(default_factory=functools.partial(cls, **changes))


def read(cls: type[S], values: Mapping[str, object] | None, path: str = '') -> S:
  """Read a section.

  Args:
    cls: frozen dataclass.
    values: {key: value}; None is empty.
    path: where in the config the section is, such as 'optim'; '' is the top.

  Raises:
    UserError: an unknown, missing or mistyped key, or a value that the dataclass refuses.
  """
  values = {} if values is None else values
  if not isinstance(values, Mapping):
    raise UserError(f'{path or "config"}: expected a section, {{key: value}}, got {values!r}')
  fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if is_key(field)}
  reject_unknown(list(values), fields, path)
  hints = typing.get_type_hints(cls)
  found = {}
  for name, field in fields.items():
    key = f'{path}.{name}' if path else name
    if name in values:
      found[name] = _value(values[name], field, hints[name], key)
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f'{key}: missing; expected {describe(hints[name])}')
  return cls(**found)


def to_dict(value: Any) -> Any:
  """Return a section as plain values for JSON, durations as text; `read` gives it back."""
  if isinstance(value, Duration):
    return str(value)
  if dataclasses.is_dataclass(value):
    return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value) if is_key(field)}
  if isinstance(value, Mapping):
    return {key: to_dict(item) for key, item in value.items()}
  return [to_dict(item) for item in value] if isinstance(value, (tuple, list)) else value


def size(value: Any, key: str) -> tuple[int, int]:
  """Return a size as (rows, columns).

  Args:
    value: a number for a square, or a pair.
    key: config key or argument, for the error.

  Raises:
    UserError: not one or two positive whole numbers.

  >>> size(224, 'data.image_size'), size([14, 28], 'model.patch_size')
  ((224, 224), (14, 28))
  """
  pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
  if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in pair):
    raise UserError(f'{key}: expected a positive number of pixels or a pair (rows, columns), got {value!r}')
  return int(pair[0]), int(pair[1])


def is_key(field: dataclasses.Field) -> bool:
  """Return whether a dataclass field is a config key."""
  return not field.metadata.get('from_data')


def reject_unknown(keys: Iterable[str], valid: Iterable[str], path: str) -> None:
  """Raise UserError, with the nearest valid key, if any of `keys` is not among `valid`."""
  valid = sorted(valid)
  prefix = f'{path}.' if path else ''
  for name in sorted(map(str, set(keys) - set(valid))):
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f' did you mean {prefix}{near[0]}?' if near else ''
    raise UserError(f'{prefix}{name}: unknown config key;{hint} valid keys are {[prefix + key for key in valid]}')


def describe(annotation: Any) -> str:
  """Return a type annotation as a person would say it.

  >>> describe(int | None), describe(bool)
  ('a whole number or None', 'True or False')
  """
  if isinstance(annotation, types.UnionType):
    return ' or '.join(map(describe, typing.get_args(annotation)))
  if isinstance(annotation, type) and issubclass(annotation, Duration):
    return "a duration such as '10 epochs'"
  return _IN_WORDS.get(annotation) or (annotation.__name__ if type(annotation) is type else str(annotation))


def _value(value: Any, field: dataclasses.Field, annotation: Any, key: str) -> Any:
  """Return a value in the form its field asks for, or raise UserError."""
  if field.metadata.get('derived') and value is None:
    return None
  if any(value is spelling or (type(value) is type(spelling) and value == spelling)
         for spelling in field.metadata.get('off', ())):
    return None
  if annotation is Any:
    return value
  if annotation in (tuple[int, int], tuple[int, int] | None):
    return None if value is None and annotation != tuple[int, int] else size(value, key)
  kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
  for kind in kinds:
    if isinstance(kind, type) and issubclass(kind, Duration):
      return kind.parse(value, key)
    if dataclasses.is_dataclass(kind):
      return value if isinstance(value, typing.cast(type, kind)) else read(typing.cast(type, kind), value, key)
  kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
  value = tuple(value) if isinstance(value, list) else value
  if value is None and dict in kinds:
    return {}  # left out and empty are the same run
  fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
  if not fits or (isinstance(value, bool) and bool not in kinds):
    raise UserError(f'{key}: expected {describe(annotation)}, got {value!r}')
  # 1 and 1.0 are the same run.
  return float(value) if float in kinds and isinstance(value, int) and int not in kinds else value

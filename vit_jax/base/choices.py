"""Look up a name in a table of choices, with an error that lists them."""
from collections.abc import Mapping
from typing import TypeVar

from vit_jax.base.errors import UserError

T = TypeVar('T')


def choose(table: Mapping[str, T], name: object, key: str) -> T:
  """Return `table[name]`.

  Args:
    table: choices by name.
    name: the user's choice.
    key: config key, flag or argument that the choice was given for.

  Raises:
    UserError: `name` is not in the table; the message lists the choices.

  >>> choose({'gap': 1, 'map': 2}, 'max', 'model.pool')
  Traceback (most recent call last):
  vit_jax.base.errors.UserError: model.pool: unknown 'max'; choose from ['gap', 'map']
  """
  if not isinstance(name, str) or name not in table:
    raise UserError(f'{key}: unknown {name!r}; choose from {sorted(table)}')
  return table[name]

"""Literal tables of choices, and the error that names what they hold."""


def choose(table, name, what):
  """Returns `table[name]`.

  Raises:
    ValueError: `name` is not in the table; the message lists the sorted choices.
  """
  if name not in table:
    raise ValueError(f'unknown {what} {name!r}; choose from {sorted(table)}')
  return table[name]

"""Names in big_vision's files: what comes before a parameter's name."""
from collections.abc import Callable, Iterable
import re

PREFIX = re.compile(r'(params|opt/target)/')
# What else the checkpoint of a training run holds.
_TRAINING = ('opt/', 'chrono/', 'extra/')


def parameter_name(names: Iterable[str]) -> Callable[[str], str | None]:
  """Return a function from a name in a file with these names to that of a parameter, or to None for anything else."""
  prefixes = {match[0] for name in names if (match := PREFIX.match(name))}
  prefix = 'params/' if 'params/' in prefixes else next(iter(prefixes), '')

  def strip(name: str) -> str | None:
    if not name.startswith(prefix):
      return None if name.startswith(_TRAINING) else name
    return name.removeprefix(prefix)

  return strip

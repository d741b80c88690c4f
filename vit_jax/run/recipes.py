"""Find and load recipes: Python files whose `get_config()` returns a ConfigDict."""
import difflib
import importlib.util
import inspect
import pathlib

import ml_collections

from vit_jax import configs
from vit_jax.base import files
from vit_jax.base.errors import UserError

_FOLDER = pathlib.Path(configs.__path__[0])
_SHARED = ('__init__', 'common')  # not recipes


def names() -> list[str]:
  """Return the names of the recipes that vit_jax brings."""
  return sorted(path.stem for path in _FOLDER.glob('*.py') if path.stem not in _SHARED)


def find(path_or_name: str) -> str:
  """Return the path of a recipe, followed by its argument if it has one.

  Args:
    path_or_name: a file such as `configs/vit.py`, or else the name of a recipe that vit_jax brings, such as `vit`;
      either may be followed by an argument for its `get_config`: `vit:l16,imagenet21k`.

  Returns:
    'PATH' or 'PATH:ARGUMENT', the path absolute.

  Raises:
    UserError: neither a file nor a recipe; the message lists the recipes.
  """
  path, colon, argument = path_or_name.partition(':')
  file = files.local(path)
  if not file.is_file():
    if path not in names():
      near = difflib.get_close_matches(pathlib.PurePath(path).stem, names(), n=1)
      hint = f' Try {near[0]!r}.' if near else ''
      raise UserError(f'recipe {path!r}: expected a file or the name of a recipe; choose from {names()}.{hint}')
    file = _FOLDER / f'{path}.py'
  return f'{file}{colon}{argument}'


def load(path_or_name: str) -> ml_collections.ConfigDict:
  """Return what a recipe's `get_config` returns.

  Args:
    path_or_name: see `find`.

  Raises:
    UserError: there is no such recipe, it has no `get_config`, or it does not take the argument.
  """
  path, colon, argument = find(path_or_name).partition(':')
  spec = importlib.util.spec_from_file_location(f'recipe_{pathlib.PurePath(path).stem}', path)
  if spec is None or spec.loader is None:
    raise UserError(f'recipe {path!r}: expected a Python file, NAME.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'recipe {path!r}: has no function get_config(); see the recipes {names()} for examples')
  arguments = (argument,) if colon else ()
  try:
    inspect.signature(module.get_config).bind(*arguments)
  except TypeError as error:
    found = f'got {argument!r}' if colon else f'got none; write {path_or_name}:ARGUMENT'
    raise UserError(f'recipe {path_or_name!r}: {error}; {found}') from error
  return module.get_config(*arguments)


def recipe(name: str, **overrides: object) -> ml_collections.ConfigDict:
  """Return a recipe as a ConfigDict, for a script or a notebook.

  Args:
    name: a recipe that vit_jax brings or a file, with an argument if it takes one: see `find`.
    **overrides: {'SECTION.KEY': value}; sections and keys that the recipe leaves out may be set too. They are checked
      where the config is used.

  Raises:
    UserError: there is no such recipe, or an override looks for a key inside a plain value.

  >>> recipe('vit:l16,imagenet21k', **{'data.batch_size': 512}).data.batch_size
  512
  """
  config = load(name)
  with config.ignore_type():  # as on the command line, a value that does not fit is the config reader's to refuse
    for key, value in overrides.items():
      *sections, last = key.split('.')
      section = config
      for part in sections:
        if part not in section:
          section[part] = {}
        section = section[part]
        if not isinstance(section, ml_collections.ConfigDict):
          raise UserError(f'{key}: {part} is a value, not a section; got {section!r} there')
      section[last] = value
  return config

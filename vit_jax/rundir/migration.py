"""Checkpoints of older versions: the form their state was stored in.

Version 0.1 named the patch embedding `embed`, knew no running averages of objectives, and kept moments of full size for
frozen parameters. `stored_form` says how to read such a checkpoint, `current_form` brings what was read up to date.
"""
from typing import Any

from vit_jax.models.vit_tree import RENAMED


def stored_form(state: Any, stored: dict[str, Any]) -> Any:
  """Return a state with the names that a checkpoint has for its parts.

  Args:
    state: tree of what is to be read, in today's form.
    stored: the tree of the checkpoint, nested dicts.
  """
  names = {now: then for then, now in RENAMED.items() if then in stored['params']}
  return _rename(state, names)


def current_form(restored: Any, state: Any) -> Any:
  """Return what was read in the form of `state`."""
  del state
  return _rename(restored, RENAMED)


def _rename(tree: Any, names: dict[str, str]) -> Any:
  """Rename keys of the dicts in a tree of dicts, tuples and dataclasses."""
  if isinstance(tree, dict):
    return {names.get(key, key): _rename(value, names) for key, value in tree.items()}
  if isinstance(tree, tuple):
    parts = [_rename(value, names) for value in tree]
    return type(tree)(*parts) if hasattr(tree, '_fields') else tuple(parts)
  if hasattr(tree, '__dataclass_fields__') and hasattr(tree, 'replace'):
    return tree.replace(**{name: _rename(getattr(tree, name), names) for name in tree.__dataclass_fields__})
  return tree

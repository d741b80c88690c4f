"""Checkpoints of older versions: the form their state was stored in.

Version 0.1 named the patch embedding `embed`, knew no running averages of objectives, and kept moments of full size for
frozen parameters.
"""
from collections.abc import Mapping
from typing import Any

from vit_jax.models.vit_tree import RENAMED


def old_names(params: Mapping[str, Any]) -> dict[str, str]:
  """Return {name now: name then} of the subtrees that a checkpoint stores under an old name; {} for one of today.

  Args:
    params: stored tree of parameters, nested dicts.
  """
  return {now: then for then, now in RENAMED.items() if then in params and now not in params}


def rename(tree: Any, names: Mapping[str, str]) -> Any:
  """Rename keys of the dicts in a tree of dicts, tuples and dataclasses, such as a state.

  Args:
    tree: left as it is.
    names: {old key: new key}.
  """
  if isinstance(tree, dict):
    return {names.get(key, key): rename(value, names) for key, value in tree.items()}
  if isinstance(tree, tuple):
    parts = [rename(value, names) for value in tree]
    return type(tree)(*parts) if hasattr(tree, '_fields') else tuple(parts)
  if hasattr(tree, '__dataclass_fields__') and hasattr(tree, 'replace'):
    return tree.replace(**{name: rename(getattr(tree, name), names) for name in tree.__dataclass_fields__})
  return tree


def new_names(names: Mapping[str, str]) -> dict[str, str]:
  """Return the reverse of `old_names`."""
  return {then: now for now, then in names.items()}

"""Class names from a file, checked against a head, and matched with those of a dataset."""
from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.base.text import count
from vit_jax.models.base import flatten
from vit_jax.pretrained.classes import imagenet
from vit_jax.pretrained.formats.weights import Params, Weights, unflatten

_MAX_BYTES = 16 << 20


def read_file(path: files.PathLike) -> tuple[str, ...]:
  """Return the class names in a file, in the order of the logits.

  Args:
    path: local or remote: a text file with one name per line; or JSON: a list of names, {"0": name, …} or {name: 0, …}.

  Raises:
    FileError: it cannot be read.
    UserError: it holds anything else; the message names the file.
  """
  file = files.expand(path)
  try:
    content = file.read_bytes() if file.stat().length <= _MAX_BYTES else None
  except FileNotFoundError as error:
    raise MissingFileError(f'classes: {path}: not found; expected a file with one class name per line, '
                           'or JSON') from error
  except OSError as error:
    raise FileError(f'classes: {path}: cannot read it: {error.strerror or error}') from error
  try:
    text = (content or b'').decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'classes: {path}: expected text in UTF-8: {error}') from error
  found = _parse_json(text, path) if text.lstrip()[:1] in ('[', '{') else _parse_lines(text, path)
  if not found:
    raise UserError(f'classes: {path}: holds no class names')
  return found


def with_names(weights: Weights, class_names: Sequence[str] | None) -> Weights:
  """Return weights with class names that the user gave; None leaves them as they are.

  Raises:
    UserError: not one name per logit.
  """
  if class_names is None:
    return weights
  if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
    raise UserError(f'class_names: expected a list of names, got {class_names!r}')
  if weights.config.num_classes is None:
    raise UserError('class_names: the weights have no head, so there are no classes to name; fine-tune them first')
  if len(class_names) != weights.config.num_classes:
    raise UserError(f'class_names: expected one name for each of the {weights.config.num_classes or 0:,} logits of the '
                    f'weights, got {count(len(class_names), "name")}')
  return dataclasses.replace(weights, class_names=tuple(class_names))


def checked(weights: Weights) -> Weights:
  """Return weights as they were read without class names that are not one per logit, and a note that says so."""
  given, classes = weights.class_names, weights.config.num_classes or 0
  if given is None or len(given) == classes:
    return weights
  note = (f'class names: left out, as the config has {count(len(given), "name")} and the head {classes:,} classes')
  return dataclasses.replace(weights, class_names=None, notes=(*weights.notes, note))


def find_order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
  """Return where each of our classes is among theirs, or None if these are not the same names, each once.

  ImageNet's WordNet ids and its readable names count as the same.

  >>> find_order(['cat', 'dog', 'emu'], ['dog', 'emu', 'cat'])
  [1, 2, 0]
  >>> find_order(['cat', 'dog'], ['cat', 'emu']) is None
  True
  """
  theirs, ours = imagenet.to_ids(theirs), imagenet.to_ids(ours)
  if theirs == ours:
    return list(range(len(ours)))
  places = {name: place for place, name in enumerate(theirs)}
  if len(places) < len(theirs) or sorted(theirs) != sorted(ours):
    return None
  return [places[name] for name in ours]


def permute_head(params: Params, head_paths: Sequence[str], order: Sequence[int]) -> Params:
  """Return parameters whose logit i is what was logit order[i]; classes are the last axis of a head's parameters."""
  leaves = flatten(params)
  below = lambda path: any(path.startswith(f'{head}/') for head in head_paths)
  return unflatten({path: leaf[..., np.asarray(order)] if below(path) else leaf for path, leaf in leaves.items()})


def _parse_lines(text: str, path: files.PathLike) -> tuple[str, ...]:
  lines = [line.strip() for line in text.rstrip().splitlines()]
  if '' in lines:
    raise UserError(f'classes: {path}: expected a class name in every line; line {lines.index("") + 1} is empty')
  return tuple(lines)


def _parse_json(text: str, path: files.PathLike) -> tuple[str, ...]:
  try:
    value: Any = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'classes: {path}: not JSON: {error}') from error
  if isinstance(value, dict):
    by_index = value if all(str(key).isdecimal() for key in value) and not all(
        type(item) is int for item in value.values()) else {str(item): key for key, item in value.items()}
    if len(by_index) < len(value) or set(by_index) != {str(i) for i in range(len(value))}:
      raise UserError(f'classes: {path}: expected an object with the numbers 0..{len(value) - 1}, each once: {{"0": '
                      'name, …} or {name: 0, …}')
    value = [by_index[str(i)] for i in range(len(value))]
  if not all(isinstance(name, str) and name for name in value):
    raise UserError(f'classes: {path}: expected every class name to be text that is not empty')
  return tuple(value)

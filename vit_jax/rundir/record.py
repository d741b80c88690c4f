"""The run record: what a checkpoint stores beside the state, for those who load the model later."""
from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import UserError

# The format of run directories: of config.json, of run records and of the states beside them. 1, which files do not
# say, is that of version 0.1. A change that the code before it would misread takes the next number.
FORMAT = 2
_FORMAT, _CHECKSUM = 'format', 'checksum'


class NewerFormatError(UserError):
  """A file of a run directory that was written by a newer version."""


def check_format(values: Mapping[str, Any], where: object) -> None:
  """Check that this version can read a file of a run directory.

  Args:
    values: JSON object in it.
    where: for the message.

  Raises:
    NewerFormatError: a newer version wrote it.
  """
  found = values.get(_FORMAT, 1)
  if not isinstance(found, int) or found > FORMAT:
    raise NewerFormatError(f'{where}: made by a newer vit_jax: its format is {found!r:.20}, and this version reads up '
                           f'to {FORMAT}. Update vit_jax: git pull, or pip install -U, as it was installed')


def with_format(values: Mapping[str, Any]) -> dict[str, Any]:
  """Return the JSON object of a file with its format; `without_format` takes it away."""
  return {_FORMAT: FORMAT, **values}


def without_format(values: Mapping[str, Any]) -> dict[str, Any]:
  """Return a JSON object without its format."""
  return {name: value for name, value in values.items() if name != _FORMAT}


def check_format_of_step(path: epath.Path) -> None:
  """Raise NewerFormatError if a newer version wrote the checkpoint in a directory; a damaged one is left to others."""
  try:
    values = files.read_json(path / 'run' / 'metadata', _MAX_RECORD)
  except (OSError, ValueError):
    return
  if isinstance(values, dict):
    check_format(values, path)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What a checkpoint says of its run.

  Attributes:
    config: the run's config as plain values.
    class_names: of the data: one name per logit if the model has a head.
    channels: of the images.
    image_size: (rows, columns) in pixels.
    versions: {package: version}.
    examples: of the training split; None if a run of version 0.1.0 did not say.
    fingerprint: of the training records, changes if an index would mean another record; None likewise.
    stamps: of the training images, see `data.loading.replaced`; empty if a run of version 0.1 had none.
    position: of the data loader, None before the first batch.
    metrics: {name: value} of the last evaluation.
    evaluation_due: whether the evaluation of this step was not finished when it was saved: a resumed run does it first.
    guard: what judges the next losses, and the examples left out: {'left_out': {step: rows of the batch}, …}.
    step: of the checkpoint; None before the first save, and if a run of version 0.1 did not say.
    digests: {path: digest} of the arrays of the state, see `digests`; empty if a run of version 0.1 had none.
  """
  config: dict[str, Any]
  class_names: tuple[str, ...]
  channels: int
  image_size: tuple[int, int]
  versions: dict[str, str]
  examples: int | None = None
  fingerprint: str | None = None
  stamps: dict[str, str] = dataclasses.field(default_factory=dict)
  position: dict[str, int] | None = None
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  evaluation_due: bool = False
  guard: dict[str, Any] = dataclasses.field(default_factory=dict)
  step: int | None = None
  digests: dict[str, int] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """Return the record as plain values with a checksum; `from_json` gives it back."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    values = {_KEYS.get(name, name): list(value) if isinstance(value, tuple) else value
              for name, value in fields.items()}
    values = with_format(values)
    return dict(values, **{_CHECKSUM: _checksum(values)})

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'RunRecord':
    """Read a record, of this version or an older one.

    Raises:
      NewerFormatError: a newer version wrote it.
      UserError: the values are not those that were written.
    """
    check_format(values, 'the run record')
    if values.get(_CHECKSUM, _checksum(values)) != _checksum(values):
      raise UserError('the run record is damaged: its checksum does not fit its values')
    _check_types(values)
    found = {field.name: values[_KEYS.get(field.name, field.name)] for field in dataclasses.fields(cls)
             if _KEYS.get(field.name, field.name) in values}
    return cls(**dict(found, class_names=tuple(found.get('class_names') or ()), image_size=tuple(found['image_size'])))


def _check_types(values: Mapping[str, Any]) -> None:
  """Raise UserError if a value is not of the type that its field has."""
  for name, kind in _TYPES.items():
    value = values.get(_KEYS.get(name, name))
    if not (isinstance(value, kind) or (value is None and name not in _NEEDED)):
      raise UserError(f'the run record is damaged: {name} is missing or of the wrong type')
  names, size = values.get('class_names') or (), values['image_size']
  if not all(isinstance(name, str) for name in names) or [type(side) for side in size] != [int, int]:
    raise UserError('the run record is damaged: class_names are not text, or image_size is not two numbers')


def _checksum(values: dict[str, Any]) -> str:
  """Return 64 digits that change with any of the values, except that of the checksum."""
  text = json.dumps({name: value for name, value in values.items() if name != _CHECKSUM}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


_MAX_RECORD = 256 << 20  # bytes; a name takes some, and there may be a million classes

_TYPES: dict[str, type] = dict(
    config=dict, class_names=list, channels=int, image_size=list, versions=dict, examples=int, fingerprint=str,
    stamps=dict, position=dict, metrics=dict, digests=dict, step=int)
_NEEDED = ('config', 'channels', 'image_size', 'versions')

# Names in the files of version 0.1, which stay.
_KEYS = {'fingerprint': 'numbering'}

"""The run record: what a checkpoint stores beside the state, for those who load the model later."""
import dataclasses
import hashlib
import json
from typing import Any

from vit_jax.base.errors import UserError

_CHECKSUM = 'checksum'


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
    position: of the data loader, None before the first batch.
    metrics: {name: value} of the last evaluation.
    evaluation_due: whether the evaluation of this step was not finished when it was saved: a resumed run does it first.
    digests: {path: digest} of the arrays of the state, see `digests`; empty if a run of version 0.1 had none.
  """
  config: dict[str, Any]
  class_names: tuple[str, ...]
  channels: int
  image_size: tuple[int, int]
  versions: dict[str, str]
  examples: int | None = None
  fingerprint: str | None = None
  position: dict[str, int] | None = None
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  evaluation_due: bool = False
  digests: dict[str, int] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """Return the record as plain values with a checksum; `from_json` gives it back."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    values = {_KEYS.get(name, name): list(value) if isinstance(value, tuple) else value
              for name, value in fields.items()}
    return dict(values, **{_CHECKSUM: _checksum(values)})

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'RunRecord':
    """Read a record, of this version or an older one.

    Raises:
      UserError: the values are not those that were written.
    """
    if values.get(_CHECKSUM, _checksum(values)) != _checksum(values):
      raise UserError('the run record is damaged: its checksum does not fit its values')
    found = {field.name: values[_KEYS.get(field.name, field.name)] for field in dataclasses.fields(cls)
             if _KEYS.get(field.name, field.name) in values}
    return cls(**dict(found, class_names=tuple(found['class_names'] or ()), image_size=tuple(found['image_size'])))


def _checksum(values: dict[str, Any]) -> str:
  """Return 64 digits that change with any of the values, except that of the checksum."""
  text = json.dumps({name: value for name, value in values.items() if name != _CHECKSUM}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


# Names in the files of version 0.1, which stay.
_KEYS = {'fingerprint': 'numbering'}

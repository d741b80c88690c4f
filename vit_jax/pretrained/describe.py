"""Describes a weight file or a run directory, and what a fine-tune would change about it."""
from collections.abc import Sequence
import dataclasses
from typing import Any

from clu import parameter_overview

from vit_jax.base import sections
from vit_jax.base.files import PathLike
from vit_jax.base.text import listing
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.classes import imagenet
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.load import read

_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Description:
  """What a source of weights holds.

  Attributes:
    format: a name of `registry.FORMATS`, or 'workdir' for a run directory.
    fields: of the model's config.
    telling: names of the fields that tell the model from others of its kind: sizes, and whatever is not the default.
    parameters: how many numbers.
    preprocessing: transform, mean and std.
    loss: what the model was trained with: 'softmax' for one class per image, 'sigmoid' for any number.
    class_names: one name per logit, or None.
    notes: what the file does not say and was assumed.
    problems: what is missing, unused or not finite.
    fine_tune: what an adaptation would change.
    table: of the parameters, as text.
  """
  format: str
  fields: dict[str, Any]
  telling: tuple[str, ...]
  parameters: int
  preprocessing: dict[str, Any]
  loss: str
  class_names: tuple[str, ...] | None
  notes: tuple[str, ...]
  problems: tuple[str, ...]
  fine_tune: list[str]
  table: str

  def to_json(self) -> dict[str, Any]:
    """Return all but the table as plain values."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name not in ('table', 'telling')}

  def to_text(self) -> str:
    """Return all of it as several lines for a person; fields with default values are left out."""
    preprocessing = '  '.join(f'{name}={value!r}' for name, value in self.preprocessing.items())
    lines = [f'format         {self.format}', f'parameters     {self.parameters:,}', f'preprocessing  {preprocessing}',
             *self._describe_head()]
    details = {'fields': [f'{name}={self.fields[name]!r}' for name in self.telling], 'notes': self.notes,
               'problems': self.problems, 'fine-tune': self.fine_tune}
    lines += [f'{title:15}' + '\n               '.join(values) for title, values in details.items() if values]
    return '\n'.join([*lines, self.table])

  def _describe_head(self) -> list[str]:
    if self.fields['num_classes'] is None:
      return ['head           none: the model returns embeddings']
    names = listing(self.class_names, _NAMES_SHOWN, '; ') if self.class_names else 'unknown'
    kind = {'softmax': 'one class per image', 'sigmoid': 'any number of classes per image'}.get(self.loss, self.loss)
    return [f'head           {self.fields["num_classes"]:,} classes, {kind} ({self.loss})', f'class names    {names}']


def describe(source: PathLike, *, ema: bool = False, adaptation: Adaptation | None = None,
             trained_at: ImageSize = None, class_names: Sequence[str] | None = None) -> Description:
  """Describe what a source of weights holds.

  Args:
    source: see `load.read`.
    ema: for a run directory, or a checkpoint that has one: whether to take the EMA of the parameters.
    adaptation: of a fine-tune; None changes nothing.
    trained_at, class_names: see `load.read`.

  Raises:
    UserError: the source cannot be read, or the adaptation does not fit it.
  """
  adaptation = adaptation or Adaptation()
  weights = read(source, trained_at=trained_at, image_size=adaptation.image_size, class_names=class_names, strict=False,
                 ema=ema)
  weights = imagenet.with_names(weights, source)
  _, lines = adapt(weights, adaptation)
  known = [field for field in dataclasses.fields(weights.config) if field.name != 'variant']
  fields = {field.name: getattr(weights.config, field.name) for field in known}
  off = lambda field: fields[field.name] is False and field.default is None  # derived, and absent in most models
  telling = tuple(field.name for field in known if field.name == 'kind' or not sections.is_key(field)
                  or not (field.default == fields[field.name] or off(field)))
  return Description(
      format=weights.source, fields=fields, telling=telling,
      parameters=int(parameter_overview.count_parameters(weights.params)),
      preprocessing=dataclasses.asdict(weights.preprocessing), loss=weights.loss, class_names=weights.class_names,
      notes=weights.notes, problems=weights.problems, fine_tune=lines,
      table=str(parameter_overview.get_parameter_overview(weights.params, include_stats=False)))

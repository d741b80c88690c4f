"""Says what a file of weights or a run holds: `python -m vit_jax.describe SOURCE`.

With --num_classes, --image_size, --patch_size or --channels it also says what a fine-tune with those would change.
"""
import dataclasses
import json

from absl import app
from absl import flags

from vit_jax.run import cli as commands

_NAMES_SHOWN = 5


def describe(source, *, average=False, **changes):
  """What a source holds, as plain values.

  Args:
    source: see `pretrained.load.read`.
    average: of a workdir, the averaged parameters.
    **changes: image_size, patch_size, channels and num_classes of a fine-tune, see `pretrained.adapt.adapt`.

  Returns:
    (dict of format, fields, parameters, preprocessing, class_names, notes, problems and fine_tune, a table of the
    parameters as text).

  Raises:
    ValueError, OSError: the source cannot be read, or the changes do not fit it.
  """
  from clu import parameter_overview
  from vit_jax.pretrained import adapt
  from vit_jax.pretrained import load
  weights = load.read(source, image_size=changes.get('image_size'), strict=False, average=average)
  _, lines = adapt.adapt(weights, method=load.resize_method(weights), **changes)
  table = parameter_overview.get_parameter_overview(weights.params, include_stats=False)
  return dict(
      format=weights.source, fields=weights.fields, parameters=int(parameter_overview.count_parameters(weights.params)),
      preprocessing=dataclasses.asdict(weights.preprocessing), class_names=weights.class_names, notes=weights.notes,
      problems=weights.problems, fine_tune=lines), table


def text(description, table):
  """The same for people, several lines."""
  lines = [f"format         {description['format']}", f"parameters     {description['parameters']:,}"]
  lines += ['preprocessing  ' + '  '.join(f'{name}={value!r}' for name, value in description['preprocessing'].items())]
  names = description['class_names']
  lines += ['class names    ' + (_shown(names) if names else 'unknown')]
  fields = [f'{name}={value!r}' for name, value in description['fields'].items()]
  for title, values in dict(description, fields=fields).items():
    if title in ('fields', 'notes', 'problems', 'fine_tune') and values:
      lines.append(f'{title.replace("_", "-"):15}' + '\n               '.join(values))
  return '\n'.join([*lines, table])


def _shown(names):
  more = len(names) - _NAMES_SHOWN
  return ', '.join(names[:_NAMES_SHOWN]) + (f' and {more:,} more' if more > 0 else '')


def main(argv):
  """Reads, describes and prints."""
  if len(argv) != 2:
    raise app.UsageError(f'expected one SOURCE, got {argv[1:]}')
  values = flags.FLAGS
  both = lambda size: size and tuple((size * 2)[:2])
  description, table = commands.call(lambda: describe(
      argv[1], average=values.average, channels=values.channels, num_classes=values.num_classes,
      image_size=both(values.image_size), patch_size=both(values.patch_size)))
  print(json.dumps(description, indent=2) if values.json else text(description, table))


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_multi_integer('image_size', None, 'Pixels; twice for rows and columns.')
  flags.DEFINE_multi_integer('patch_size', None, 'Pixels; twice for rows and columns.')
  flags.DEFINE_integer('channels', None, 'Channels of the images to fine-tune on.')
  flags.DEFINE_integer('num_classes', None, 'Classes of the data to fine-tune on.')
  flags.DEFINE_bool('average', False, 'Of a workdir, take the moving average of the parameters.')
  flags.DEFINE_bool('json', False, 'Print one JSON object.')
  app.run(main)

"""Evaluate a run's checkpoint, or any weights on any data: `python -m vit_jax.evaluate --workdir=runs/digits`.

  python -m vit_jax.evaluate --workdir=runs/digits
  python -m vit_jax.evaluate --model=timm:vit_base_patch16_224.augreg_in21k_ft_in1k --config.data.name=imagenet2012

Prints one JSON object with every metric; for a run directory also the step, and whether the run recorded the same
numbers. Weights need no recipe: images are prepared as the model says, and its classes are matched with those of the
data by name. Keys of the sections data, normalization, evaluators and parallel can be set.
"""
import json
import sys
from typing import TextIO

from absl import app, flags

from vit_jax.base import files
from vit_jax.run import cli

SECTIONS = ('data', 'normalization', 'evaluators', 'parallel')


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string('workdir', None, 'Run directory to evaluate with its own config.')
  flags.DEFINE_string('model', None, 'Or a file, name or run directory of a model to evaluate on --config.data.name.')
  flags.DEFINE_integer('step', None, 'For a run directory: which checkpoint; the latest by default.')
  flags.DEFINE_string('data_dir', None, "With --workdir: directory of the datasets, if not where the config says.")
  flags.DEFINE_string('split', None, 'With --model: split to evaluate; by default test, validation or val.')
  flags.DEFINE_bool('ema', False, 'With --model, for weights with an EMA: use the EMA.')
  flags.DEFINE_string('output', None, 'Directory for tables: metrics.json, and for each classifier the classes and the '
                      'confusion matrix.')
  cli.define_source_flags()
  cli.define_sections_flag(*SECTIONS)
  cli.define_host_flags()


def main(argv: list[str]) -> None:
  """Reject stray arguments, then evaluate and print."""
  cli.no_arguments(argv)
  values = flags.FLAGS
  if (values.workdir is None) == (values.model is None):
    raise app.UsageError('expected either --workdir=RUN or --model=MODEL with --config.data.name=DATA')
  sections = cli.call(cli.given_sections, *SECTIONS)
  with_model = dict(split=values.split, ema=values.ema, trained_at=values.trained_at, classes=values.classes,
                    **{f'config.{name}': keys for name, keys in sections.items()})
  ignored = [name for name, value in (dict(data_dir=values.data_dir) if values.model else with_model).items() if value]
  if ignored:
    fix = '--config.data.data_dir' if values.model else f'--model={values.workdir}'
    raise app.UsageError(f'--{ignored[0]}: has no effect with --{"model" if values.model else "workdir"}; use {fix}')
  from vit_jax.run import evaluation  # after the flags: --help need not wait for jax
  from vit_jax.run.writer import finite
  cli.set_up_compiler()
  cli.call(cli.start_hosts)
  if values.model:
    metrics = cli.call(lambda: evaluation.evaluate_weights(
        values.model, sections, split=values.split, ema=values.ema, step=values.step, output=values.output,
        **cli.source_options()))
    cli.call(_report, finite(metrics), values.output)
    return
  step, metrics, recorded = cli.call(evaluation.evaluate, values.workdir, values.step, values.data_dir, values.output)
  metrics = finite(metrics)
  cli.call(_report, dict(step=step, **metrics), values.output)
  known = {name: recorded[name] for name in metrics if name in recorded}
  if known:
    same = known == {name: metrics[name] for name in known}
    _print('Equal to what the run recorded at this step.' if same else f'The run recorded {known}.', sys.stderr)


def _report(values: dict[str, float | None], output: str | None) -> None:
  """Print the metrics as JSON and, unless `output` is None, write them there."""
  import jax

  from vit_jax.evaluators import tables
  _print(json.dumps(values), sys.stdout)
  if output is not None and jax.process_index() == 0:
    files.write(files.expand(output) / tables.METRICS, json.dumps(values, indent=2) + '\n', 'the metrics')
    _print(f'Tables are in {output}.', sys.stderr)


def _print(text: str, stream: TextIO) -> None:
  """Print once, however many processes evaluate."""
  import jax
  if jax.process_index() == 0:
    print(text, file=stream)


if __name__ == '__main__':
  define_flags()
  cli.start(main)

"""Measure frozen features, and classify with them: `python -m vit_jax.probe --model=MODEL --config.data.name=DATA`.

  python -m vit_jax.probe --model=hf:facebook/dinov2-small --config.data.name=folder:flowers --output=flowers_model

The model is a file, a name or a run directory that `vit_jax.load` takes. No recipe is needed: images are prepared as
the model says, `train` is learned from and `test`, `validation` or `val` tested on; without a test split a fifth of the
images is held out. Prints a table. --output=DIR writes the backbone with the linear probe as its head, for
`vit_jax.predict` and `vit_jax.load`.

Features are kept on disk: another method, or --output, needs no second pass over the images.
"""
from collections.abc import Sequence
import json
from typing import Any

from absl import flags

from vit_jax.base.errors import UserError
from vit_jax.base.text import printable
from vit_jax.run import cli

_METHODS = ('few_shot', 'knn', 'nearest_mean', 'linear_probe', 'retrieval')


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('model', None, 'Run directory, file or name of a model.', required=True)
  cli.define_sections_flag('data')
  flags.DEFINE_string('test_split', None, 'Split to be tested on; test, validation or val by default. '
                      '--config.data.train_split is the one to learn from.')
  flags.DEFINE_list('methods', list(_METHODS), 'What to measure.')
  flags.DEFINE_list('shots', ['1', '5', '10', '25'], 'few_shot: training images per class.')
  flags.DEFINE_integer('seeds', 3, 'few_shot: how often the images are drawn.')
  flags.DEFINE_string('l2', '1024', "few_shot: penalty, or 'sweep' to choose it on the other training images.")
  flags.DEFINE_list('k', None, 'knn: numbers of neighbors; by default those of 10, 20, 100, 200 that there are.')
  flags.DEFINE_string('output', None, 'Directory to write the model with the linear probe as its head to.')
  flags.DEFINE_string('cache_dir', None, 'Folder for features; by default in $VIT_JAX_CACHE or ~/.cache/vit_jax.')
  flags.DEFINE_integer('batch_size', 32, 'Images that a device sees at once.')
  flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16', 'float16'], 'Of activations; that of the model by default.')
  flags.DEFINE_bool('json', False, 'Print one JSON object per row.')
  flags.DEFINE_bool('ema', False, 'For a run directory or a checkpoint with an EMA: use the EMA.')
  flags.DEFINE_integer('step', None, 'For a run directory: which checkpoint; the latest by default.')
  cli.define_source_flags()
  cli.define_host_flags()


def main(argv: Sequence[str]) -> None:
  """Reject stray arguments, then probe and print."""
  cli.no_arguments(list(argv), '--model=MODEL --config.data.name=folder:flowers')
  data = cli.call(cli.given_sections, 'data')['data']
  numbers = cli.call(_numbers)
  cli.set_up_compiler()  # after the cheap checks: jax takes seconds
  cli.call(cli.start_hosts)
  cli.call(_run, data, numbers)


def _numbers() -> dict[str, Any]:
  """Return the flags that are lists of numbers, and the penalty."""
  values, found = flags.FLAGS, {}
  for name in ('shots', 'k'):
    given = values[name].value
    if given is not None and not all(text.strip().isdecimal() for text in given):
      raise UserError(f'--{name}: expected whole numbers such as 5,20, got {",".join(given) or "none"}')
    found[name] = None if given is None else tuple(int(text) for text in given)
  try:
    found['l2'] = values.l2 if values.l2 == 'sweep' else float(values.l2)
  except ValueError as error:
    raise UserError(f"--l2: expected a positive number or 'sweep', got {values.l2!r}") from error
  return found


def _run(data: dict[str, Any], numbers: dict[str, Any]) -> None:
  from vit_jax.evaluators.frozen.few_shot import FewShotConfig
  from vit_jax.evaluators.frozen.knn import KnnConfig
  from vit_jax.probing import methods, probe
  values = flags.FLAGS
  settings = probe.Settings(
      methods=values.methods, test_split=values.test_split, batch_size=values.batch_size, dtype=values.dtype,
      cache_dir=values.cache_dir, output=values.output, options=methods.Options(
          FewShotConfig(shots=numbers['shots'], seeds=values.seeds, l2=numbers['l2']), KnnConfig(k=numbers['k'])))
  results = probe.probe(values.model, data, settings, ema=values.ema, step=values.step, **cli.source_options())
  import jax
  if jax.process_index() != 0:
    return
  if values.json:
    for row in results.rows:
      print(printable(json.dumps(row._asdict(), ensure_ascii=False)))
  else:
    print(printable(methods.table(results.rows)))


if __name__ == '__main__':
  define_flags()
  cli.start(main)

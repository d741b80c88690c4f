"""Estimate the cost of a training step, without the machine: `python -m vit_jax.plan --config=… --topology=v5e:16x16`.

Compiles the step that `vit_jax.main` would run with the same config, for a TPU slice that you need not have or, without
--topology, for the devices that jax finds. Prints, per device, whether the step fits, its memory, the compiler's
estimate of its cycles and where they go, and its collectives. Exit status 1: it does not fit.
"""
import json
import sys

from absl import app, flags

from vit_jax.run import cli


<<<<<<< HEAD
def define_flags() -> None:
  """Define the command's flags."""
  cli.define_config_flag()
  flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:16x16, v4:2x2x1 or v5litepod-256; by default the '
                      'devices that jax finds.')
  flags.DEFINE_integer('num_classes', None, 'Classes of the data, if the dataset is neither known nor prepared.')
  flags.DEFINE_bool('search', False, 'Find the largest batch that devices hold at once, without train.micro_batch, and '
                    'its cheapest rematerialization.')
=======
def plan(config, topology=None, *, num_classes=None, search=False, say=lambda text: None):
  """What a step costs.

  Args:
    config: ConfigDict or dict, see `configs/`.
    topology: TPU slice, see `planning.chips.parse`; None plans for the devices that jax finds.
    num_classes: of the data. None: as `data.facts` knows them, else the data set is opened.
    search: whether to look for the largest batch that fits, see `planning.search`.
    say: called with lines of progress.

  Returns:
    A dict, see `planning.estimate.estimate`.

  Raises:
    ValueError, OSError: a bad config or topology, no TPU compiler, weights or data that cannot be read.
  """
  from vit_jax.run import config as config_lib
  from vit_jax.pretrained import transfer
  from vit_jax.planning import chips
  from vit_jax.planning import estimate
  from vit_jax.planning import search as search_lib
  tpu = None if topology is None else chips.tpu_slice(topology)
  config = config_lib.as_dict(config)
  config['init'] = config.get('init') or None  # a fine-tune whose weights are not named yet: the recipe's own model
  config, _ = transfer.fill_model(config)
  facts = _facts(config_lib.resolve(config), num_classes)
  if search:
    return search_lib.search(config, facts, tpu, say)
  return estimate.estimate(config_lib.resolve(config), facts, tpu, say)


def _facts(config, num_classes):
  """Facts of the training data, if need be from the data itself."""
  import dataclasses
  from vit_jax.data.loading.dataset import Dataset
  from vit_jax.data.sources.info import DatasetInfo, KNOWN_DATASETS
  known = KNOWN_DATASETS.get(config.data.name)
  if num_classes is not None:
    # How many examples an epoch has decides the schedule, not the cost of a step.
    known = dataclasses.replace(known or DatasetInfo(1_000_000, 0, 3), num_classes=num_classes)
  elif known is None:
    try:
      known = Dataset(config.seed, 0, 1, **config.data.to_dict()).source.info
    except (ValueError, OSError) as error:
      raise type(error)(f'{error}\nA plan needs no data if it knows the classes: --num_classes=N') from error
  return dataclasses.replace(known, channels=config.data.channels or known.channels)


def main(argv):
  """Plans and prints; progress goes to stderr."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; flags look like --topology=v5e:2x4')
  from vit_jax.planning import report
  values = flags.FLAGS
  say = lambda text: print(text, file=sys.stderr, flush=True)
  found = commands.call(lambda: plan(values.config, values.topology, num_classes=values.num_classes,
                                     search=values.search, say=say))
  print(json.dumps(found) if values.json else report.text(found))
  sys.exit(found['fits'] is False)


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe, a file of configs/; --config.SECTION.KEY=VALUE overrides a key.', lock_config=False,
      accept_new_attributes=True)
  flags.FLAGS['config'].parser = RecipeParser('config', lock_config=False)
  flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:16x16, v4:2x2x1 or v5litepod-256; else what is here.')
  flags.DEFINE_integer('num_classes', None, 'Classes of the data, if the data set is neither known nor here.')
  flags.DEFINE_bool('search', False,
                    'Find the largest batch that devices hold at once, train.micro_batch unset, and its cheapest '
                    'rematerialisation.')
>>>>>>> fc40a85 (Sources and audit: typed contracts, TFDS in a file of its own, the audit command is flags and printing, plain English)
  flags.DEFINE_bool('json', False, 'Print one JSON object.')


def main(argv: list[str]) -> None:
  """Reject stray arguments, then plan and print; progress goes to stderr."""
  cli.no_arguments(argv, '--topology=v5e:2x4')
  from vit_jax.planning import planner, report  # after the flags: --help need not wait for jax
  values = flags.FLAGS
  log = lambda text: print(text, file=sys.stderr, flush=True)
  plan = cli.call(lambda: planner.plan(values.config, values.topology, num_classes=values.num_classes,
                                       search=values.search, log=log))
  print(json.dumps(plan.to_json()) if values.json else report.text(plan))
  sys.exit(plan.memory.fits is False)


if __name__ == '__main__':
  define_flags()
  app.run(main)

"""Evaluates a run's checkpoint: `python -m vit_jax.evaluate --workdir=runs/digits`.

Prints one JSON object with the step and every metric, and says whether the run recorded the same numbers.
"""
import json
import sys

from absl import app
from absl import flags
from etils import epath

from vit_jax.run import cli as commands


def evaluate(workdir, step, data_dir):
  """Evaluates the checkpoint of a step.

  Args:
    workdir: of a run.
    step: of the checkpoint, None for the latest.
    data_dir: takes the place of config.data.data_dir unless None.

  Returns:
    (step, {metric: value}, {metric: value} that the run recorded at that step).

  Raises:
    FileNotFoundError: no run or no such checkpoint there.
  """
  from vit_jax import train
  from vit_jax.run import claim as workdir_lib
  from vit_jax.rundir.checkpoint import Checkpoints
  workdir = epath.Path(workdir).expanduser()
  path = workdir / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{workdir} is no workdir of a run: there is no {path}')
  config = workdir_lib.read_config(workdir)
  config['data']['data_dir'] = data_dir or config['data']['data_dir']
  parts = _build(config)
  checkpoints = Checkpoints(workdir.absolute() / 'checkpoints', read_only=True, **parts.checkpoint)
  try:
    steps = checkpoints.steps()
    if not steps or step not in (None, *steps):
      raise FileNotFoundError(f'{workdir} has no checkpoint' + (f' of step {step}; there are {steps}' if steps else ' yet'))
    step, state, _ = train.restore(parts, checkpoints, step)
  finally:
    checkpoints.close()
  return step, train.evaluate(parts, state), _recorded(workdir / 'metrics.jsonl', step)


def _build(config):
  """The parts of a run; where what was trained does not fit the devices that are there, of one that measures the same."""
  from vit_jax import train
  from vit_jax.distributed import strategy as parallel
  try:
    return train.build(config)
  except ValueError as error:
    reason = error
  for section in (config.get('parallel', {}), *parallel.FOR_EVALUATION):
    try:
      return train.build(_fitted(config, section, parallel.build(**section).shares))
    except ValueError as error:  # the last stands: any number of devices can do with whole models
      reason = error
  raise reason


def _fitted(config, section, shares):
  """The config without what asks for some number of devices. A device holds as many images as before, or fewer."""
  data, micro_batch = config['data'], config['train'].get('micro_batch')
  images = -(-data['batch_size'] // shares)
  images = images if micro_batch is None else min(images, micro_batch)
  return dict(config, data=dict(data, batch_size=images * shares, repeats=1),
              train=dict(config['train'], micro_batch=None), mix={}, parallel=section)


def _recorded(path, step):
  text = path.read_text() if path.exists() else ''
  lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]  # the last may be half there
  return {name: value for line in lines if line['step'] == step for name, value in line.items()}


def main(argv):
  """Parses nothing more, evaluates and prints."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; flags look like --workdir=runs/digits')
  commands.prepare()
  commands.call(commands.start_hosts)
  step, values, recorded = commands.call(evaluate, flags.FLAGS.workdir, flags.FLAGS.step, flags.FLAGS.data_dir)
  import jax  # after the flags: --help need not wait for it
  if jax.process_index() != 0:
    return
  print(json.dumps(dict(step=step, **values)))
  known = {name: recorded[name] for name in values if name in recorded}
  if known:
    same = known == values
    print('Equal to what the run recorded at this step.' if same else f'The run recorded {known}.', file=sys.stderr)


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_string('workdir', None, 'Workdir of a run of vit_jax.main.', required=True)
  flags.DEFINE_integer('step', None, 'Which checkpoint; the latest by default.')
  flags.DEFINE_string('data_dir', None, "Where the data sets are, if not where the run's config says.")
  commands.define_host_flags()
  app.run(main)

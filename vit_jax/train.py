"""Train a model from Python: `train.run(config, workdir)`."""
import jax

from vit_jax.base import memory
from vit_jax.base.files import PathLike
from vit_jax.distributed import hosts
from vit_jax.pretrained import transfer
from vit_jax.run import claim, start
from vit_jax.run import config as config_lib
from vit_jax.run.build import build
from vit_jax.run.config import Recipe
from vit_jax.run.loop import describe, Loop
from vit_jax.run.preemption import StopRequest
from vit_jax.run.writer import Writer
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir


def run(config: Recipe, workdir: PathLike) -> dict[str, float]:
  """Train what a config describes, or resume the run in `workdir`.

  Args:
    config: a recipe, see `configs/` and `vit_jax.recipe`.
    workdir: local or gs:// directory for config, metrics and checkpoints; made if missing.

  Returns:
    {metric: value} of the last evaluation, such as {'test/accuracy': 0.98}.

  Raises:
    UserError: a bad config, or a workdir that holds another config's run.
    FileError: a workdir that cannot be made or written.
  """
  run_dir = RunDir(workdir)
  recipe, weights = transfer.fill_model(config_lib.as_dict(config), run_dir)
  parts = build(recipe)
  hosts.check_processes_match(start.facts(parts), _differences)
  claim.claim(run_dir, parts.config)
  checkpoints = Checkpoints(run_dir.checkpoints_path, parts.config.checkpoint, parts.pace)
  at = start.restore(parts, checkpoints)
  hosts.check_equal(at.step, 'latest checkpoints (step)')  # a network file system may be behind on one of them
  writer = Writer(run_dir, parts.num_steps, at.step, active=jax.process_index() == 0)
  try:
    if at.step == parts.num_steps:
      writer.say(f'The run in {run_dir} is finished: step {at.step}, {describe(at.record.metrics)}. Nothing to do.')
      return at.record.metrics
    start.check_same_records(parts, at)
    writer.say(start.greeting(parts, run_dir, at))
    if at.step == 0 and parts.config.init:
      start.from_weights(parts, at, weights, writer)
    writer.say(parts.overview)
    with memory.explain_out_of_memory(parts.config), StopRequest() as stop:
      return Loop(parts, checkpoints, writer, stop).run(at).record.metrics
  finally:
    writer.close()
    checkpoints.close()


<<<<<<< HEAD
def _differences(theirs: dict, ours: dict) -> str:
  may_differ = [f'config.{key}' for key in config_lib.MAY_DIFFER_BETWEEN_PROCESSES]
  return config_lib.difference(theirs, ours, may_differ)
=======
def restore(parts, checkpoints, step=None):
  """The state to go on from.

  Args:
    parts: the run.
    checkpoints: its checkpoints.
    step: which of them; None is the latest, or a new state if there is none.

  Returns:
    (step, state on the devices, record: dict with data position, metrics and all that a model needs).
  """
  step = checkpoints.latest() if step is None else step
  if step is None:
    return 0, parts.strategy.create(parts.create), dict(_record(parts), position=None, metrics={})
  state, record = checkpoints.restore(step, parts.strategy.abstract(jax.eval_shape(parts.create)))
  if tuple(record['class_names']) != parts.data.source.class_names:
    raise ValueError(f"the classes of {parts.config.data.name} have changed since step {step}: they were "
                     f"{record['class_names']}, they are {list(parts.data.source.class_names)}; labels would be mixed up")
  # How often to log, evaluate and save may have changed since; of what older versions did not record we know but the present.
  return step, parts.strategy.place(state), {**_record(parts), **record, 'config': parts.config.to_dict()}


def _check_records(parts, step, record):
  """Raises ValueError where the data position of a record would mean other examples than when it was saved."""
  source, exclude = parts.data.source, parts.config.data.exclude
  if record['numbering'] == source.fingerprint:
    return
  before, now = record['examples'], len(source)
  changed = f'there were {before:,}, there are {now:,}' if before != now else f'there are {now:,} still, but others'
  kept = 'the files' + (f' and the exclusion list {exclude}' if exclude else '')
  raise ValueError(f'the training records of {source.name} {source.split} have changed since step {step}: {changed}. Going on '
                   f'would leave out some of an epoch and repeat others. Bring back {kept} as they were, or train on what is '
                   'there now in another --workdir; --config.init=WORKDIR starts it from the weights of this one')


def _from_weights(parts, state, weights, report):
  """The state at step 0 with the parameters that `config.init` names, as far as they fit."""
  sections = parts.config.to_dict()
  params, lines = transfer.fit(weights, state.params, parts.data.source, parts.data.image_size, sections['model'],
                               transfer.Transfer(**sections['transfer']))
  report.say('\n'.join([f'Starting from {parts.config.init}:', *(f'  {line}' for line in lines or ['all as it is'])]))
  ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
  return parts.strategy.place(state.replace(params=params, ema=ema))


def evaluate(parts, state):
  """{'NAME/METRIC': value} of all evaluators, and 'NAME_ema/METRIC' of the averaged parameters."""
  values = {}
  for name, evaluator in parts.evaluators.items():
    values.update({f'{name}/{metric}': value for metric, value in evaluator(state.params).items()})
    if state.ema is not None:
      values.update({f'{name}_ema/{metric}': value for metric, value in evaluator(state.ema).items()})
  return values


def _loop(parts, checkpoints, report, stop, start, state, record):
  """Steps from `start` to the end; the order of effects at each step is the order of these lines."""
  train, strategy = parts.train, parts.strategy
  step_fn = strategy.compile(parts.step, donate=True)
  iterator = iter(parts.data.train_batches())
  if record['position'] is not None:
    iterator.set_state(record['position'])
  # On a CPU several programs with collectives in flight can deadlock; elsewhere one ahead hides the dispatch.
  in_flight, ahead = collections.deque(), 0 if jax.default_backend() == 'cpu' else 1
  window = Window(parts.schedule, parts.config.data.batch_size, parts.data.examples_per_epoch)
  starvation = Starvation(train.eval_every)
  batch = strategy.put(next(iterator))

  for step in range(start + 1, train.duration + 1):
    state, metrics = step_fn(state, batch)
    position = iterator.get_state()  # before the next batch is drawn: a checkpoint holds state and position together
    if step < train.duration:
      batch = window.wait(lambda: strategy.put(next(iterator)), metrics)
    in_flight.append(metrics)
    while len(in_flight) > ahead:
      jax.block_until_ready(in_flight.popleft())
    window.add(metrics)
    if step == start + 1:
      jax.block_until_ready(metrics)
      report.say(f'First step took {window.elapsed():.1f} s, compilation included.')
      window.restart_clock()
      stop.begin()

    last, stopping = step == train.duration, stop.asked(step)
    logged = step % train.log_every == 0 or last
    evaluated = step % train.eval_every == 0 or last
    if logged:
      check_finite(metrics, step, checkpoints.latest())
      values = window.take(step)
      report.write(step, values)
      report.progress(step, values)
      if warning := starvation.warning(step, values):
        report.say(warning)
    if evaluated:
      record['metrics'] = evaluate(parts, state)
      report.write(step, record['metrics'])
      report.say(f'step {step}/{train.duration}  evaluation  {_pairs(record["metrics"])}')
    if last or stopping or checkpoints.due(step, at_log=logged, evaluated=evaluated):
      check_finite(metrics, step, checkpoints.latest())
      record['position'] = position
      checkpoints.save(step, strategy.fetch(state), record, record['metrics'] if evaluated else None)
    if stopping and not last:
      checkpoints.wait()
      report.say(f'Stopped after step {step}, which is saved; the same command goes on.')
      stop.end()
    if logged or evaluated:
      window.restart_clock()
    report.tick(step)
  return record['metrics']


def _facts(parts):
  """What must be the same on all hosts."""
  source = parts.data.source
  return dict(config=parts.config.to_dict(), versions=dict(platform.versions(), python=sys.version.split()[0]),
              examples=len(source), numbering=source.fingerprint, class_names=source.class_names)


def _differences(theirs, ours):
  free = [f'config.{key}' for key in config_lib.FREE_BETWEEN_HOSTS]
  return config_lib.difference(theirs, ours, free=free)


def _record(parts):
  """What a checkpoint holds beside the state, for those who load the model later."""
  source = parts.data.source
  return dict(config=parts.config.to_dict(), class_names=source.class_names, channels=source.channels,
              examples=len(source), numbering=source.fingerprint,
              image_size=parts.data.image_size, versions=platform.versions())


def _greeting(parts, workdir, start):
  devices, config = jax.devices(), parts.config
  per_device = config.data.batch_size // parts.strategy.shares
  lines = [
      f'devices     {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)',
      f'strategy    {parts.strategy}',
      f'batch       {config.data.batch_size} global, {per_device} a device, in {parts.accumulate} micro-batch(es)',
      f'data        {config.data.name} {config.data.train_split}: {len(parts.data.source):,} examples, '
      f'{parts.data.source.num_classes} classes',
      f'input       {parts.data.describe_feeding()}',
      f'parameters  {parts.num_params:,}',
      f'steps       {parts.train.duration:,}' + (f', going on after step {start:,}' if start else ''),
      f'workdir     {workdir}']
  return '\n'.join(lines)


def _pairs(values):
  return '  '.join(f'{name} {value:.4f}' for name, value in values.items())
>>>>>>> fc40a85 (Sources and audit: typed contracts, TFDS in a file of its own, the audit command is flags and printing, plain English)

"""The training loop: `run(config, workdir)`.

All reading of the config, all I/O and its order are here; the parts it puts together know nothing of each other.
"""
import collections
import dataclasses
from typing import Any, Callable

from clu import parameter_overview
from flax import nnx
import jax

from vit_jax import config as config_lib
from vit_jax import evaluators as evaluators_lib
from vit_jax import platform
from vit_jax import transfer
from vit_jax import workdir as workdir_lib
from vit_jax.data.dataset import Dataset
from vit_jax.models.vit import VisionTransformer
from vit_jax.normalization import Normalization
from vit_jax.pretrained import load
from vit_jax.training import optim
from vit_jax.training import parallel
from vit_jax.training.checkpoint import check_options, Checkpoints
from vit_jax.training.objectives import Classification
from vit_jax.training.report import Report
from vit_jax.training.state import TrainState
from vit_jax.training.step import make_train_step
from vit_jax.training.stop import StopRequest
from vit_jax.training.window import check_finite, Window


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a config describes, built but not run.

  Attributes:
    config: the resolved config.
    train: the loop's own settings, durations in steps.
    checkpoint: arguments of `Checkpoints`, the interval in steps or minutes.
    data: opened data set.
    strategy: how steps are spread over devices.
    create: () → TrainState at step 0.
    step: (state, batch) → (state, metrics).
    accumulate: micro-batches in a step.
    schedule: step → learning rate.
    evaluators: {name: evaluator}.
    overview: a table of the parameters.
    num_params: how many there are.
  """
  config: Any
  train: config_lib.Train
  checkpoint: dict[str, Any]
  data: Dataset
  strategy: Any
  create: Callable[[], TrainState]
  step: Callable[..., Any]
  accumulate: int
  schedule: Callable[..., Any]
  evaluators: dict[str, Callable[..., dict[str, float]]]
  overview: str
  num_params: int


def build(config) -> Parts:
  """Builds all parts of a run from a config; raises ValueError for a bad one, before anything compiles."""
  config = config_lib.resolve(config)
  platform.require(config.platform)
  sections = config.to_dict()
  strategy = parallel.build(**sections['parallel'])
  accumulate = strategy.micro_batches(config.data.batch_size, config.train.micro_batch)
  data = Dataset(config.seed, jax.process_index(), jax.process_count(), **sections['data'])
  sizes = dict(batch_size=config.data.batch_size, examples=len(data.source))
  in_steps = lambda name: config_lib.in_steps(name, sections[name], **sizes)
  train = config_lib.Train(**in_steps('train'))

  make_model = lambda: VisionTransformer(
      image_size=data.image_size, channels=data.source.channels, num_classes=data.source.num_classes,
      rngs=nnx.Rngs(config.seed), **sections['model'])
  graphdef, abstract_params = nnx.split(nnx.eval_shape(make_model), nnx.Param)
  abstract_params = nnx.to_pure_dict(abstract_params)
  optimizer, schedule = optim.build(train.duration, **in_steps('optim'))
  frozen = optim.frozen_tree(abstract_params, config.optim.freeze)
  jax.eval_shape(optimizer.init, abstract_params)  # a bad mask is an error here
  objective, normalize = Classification(**sections['objective']), Normalization(**sections['normalization'])
  objective.check(data.source.num_classes)
  transfer.Transfer(**sections['transfer'])  # a bad one is an error here
  step = make_train_step(graphdef, objective, optimizer, normalize, seed=config.seed, accumulate=accumulate,
                         ema_decay=train.ema_decay, axis_name=strategy.axis_name,
                         by_block=config.model.unroll, frozen=frozen)

  def create():
    params = nnx.to_pure_dict(nnx.state(make_model(), nnx.Param))
    return TrainState.create(params, optimizer, ema=train.ema_decay is not None)

  def evaluator(kind, **arguments):
    # Training holds micro-batches; evaluation need not hold more.
    return evaluators_lib.EVALUATORS[kind](graphdef, objective, normalize, strategy, data,
                                           config.data.batch_size // accumulate, **arguments)

  checkpoint = in_steps('checkpoint')
  check_options(checkpoint['every'], checkpoint['keep'], checkpoint['keep_best'])
  suffixes = [''] if train.ema_decay is None else ['', '_ema']
  measured = sorted(f'{name}{suffix}/{metric}' for name, keys in sections['evaluators'].items() for suffix in suffixes
                    for metric in evaluators_lib.EVALUATORS[keys['kind']].METRICS)
  if checkpoint['keep_best'] and checkpoint['best'] not in measured:
    raise ValueError(f"checkpoint.best={checkpoint['best']!r} is not measured; choose from {measured}")
  return Parts(
      config=config, train=train, checkpoint=checkpoint, data=data, strategy=strategy,
      create=jax.jit(create), step=step, accumulate=accumulate, schedule=schedule,
      evaluators={name: evaluator(**keys) for name, keys in sections['evaluators'].items()},
      overview=parameter_overview.get_parameter_overview(abstract_params, include_stats=False),
      num_params=sum(x.size for x in jax.tree.leaves(abstract_params)))


def run(config, workdir):
  """Trains what a config describes, or goes on where a run in `workdir` stopped.

  Args:
    config: ConfigDict or dict, see `configs/` and `config.resolve`.
    workdir: local or gs:// folder for config, metrics and checkpoints; made if missing.

  Returns:
    {metric: value} of the last evaluation, such as {'test/accuracy': 0.98}.

  Raises:
    ValueError: a bad config, or a workdir that holds another config's run.
    OSError: a workdir that cannot be made or written.
  """
  config, weights = transfer.fill_model(config_lib.as_dict(config), workdir)
  parts = build(config)
  workdir = workdir_lib.claim(workdir, parts.config)
  checkpoints = Checkpoints(workdir / 'checkpoints', **parts.checkpoint)
  start, state, record = restore(parts, checkpoints)
  report = Report(workdir, parts.train.duration, start, active=jax.process_index() == 0)
  try:
    if start < parts.train.duration:
      report.say(_greeting(parts, workdir, start))
    if start == 0 and parts.config.init:
      state = _from_weights(parts, state, weights or load.read(parts.config.init), report)
    if start == parts.train.duration:
      report.say(f'The run in {workdir} is finished: step {start}, {_pairs(record["metrics"])}. Nothing to do.')
      return record['metrics']
    report.say(parts.overview)
    with StopRequest() as stop:
      return _loop(parts, checkpoints, report, stop, start, state, record)
  finally:
    report.close()
    checkpoints.close()


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
    return 0, parts.strategy.place(parts.create()), dict(_record(parts), position=None, metrics={})
  state, record = checkpoints.restore(step, jax.eval_shape(parts.create))
  if tuple(record['class_names']) != parts.data.source.class_names:
    raise ValueError(f"the classes of {parts.config.data.name} have changed since step {step}: they were "
                     f"{record['class_names']}, they are {list(parts.data.source.class_names)}; labels would be mixed up")
  # How often to log, evaluate and save may have changed since.
  return step, parts.strategy.place(state), dict(record, config=parts.config.to_dict())


def _from_weights(parts, state, weights, report):
  """The state at step 0 with the parameters that `config.init` names, as far as they fit."""
  sections = parts.config.to_dict()
  params, lines = transfer.fit(weights, state.params, parts.data.source, parts.data.image_size, sections['model'],
                               transfer.Transfer(**sections['transfer']))
  report.say('\n'.join([f'Starting from {parts.config.init}:', *(f'  {line}' for line in lines or ['all as it is'])]))
  ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
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
  window = Window(parts.schedule, parts.config.data.batch_size, len(parts.data.source))
  batch = strategy.put(next(iterator))

  for step in range(start + 1, train.duration + 1):
    state, metrics = step_fn(state, batch)
    position = iterator.get_state()  # before the next batch is drawn: a checkpoint holds state and position together
    if step < train.duration:
      batch = window.wait(lambda: strategy.put(next(iterator)))
    in_flight.append(metrics)
    while len(in_flight) > ahead:
      jax.block_until_ready(in_flight.popleft())
    window.add(metrics)
    if step == start + 1:
      jax.block_until_ready(metrics)
      report.say(f'First step took {window.elapsed():.1f} s, compilation included.')
      window.restart_clock()

    last, stopping = step == train.duration, stop.signal is not None
    logged = step % train.log_every == 0 or last
    evaluated = step % train.eval_every == 0 or last
    if logged:
      check_finite(metrics, step, checkpoints.latest())
      values = window.take(step)
      report.write(step, values)
      report.progress(step, values)
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


def _record(parts):
  """What a checkpoint holds beside the state, for those who load the model later."""
  source = parts.data.source
  return dict(config=parts.config.to_dict(), class_names=source.class_names, channels=source.channels,
              image_size=parts.data.image_size, versions=platform.versions())


def _greeting(parts, workdir, start):
  devices, config = jax.devices(), parts.config
  per_device = config.data.batch_size // len(devices)
  lines = [
      f'devices     {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), '
      f'process {jax.process_index() + 1} of {jax.process_count()}',
      f'batch       {config.data.batch_size} global, {per_device} a device, in {parts.accumulate} micro-batch(es)',
      f'data        {config.data.name} {config.data.train_split}: {len(parts.data.source):,} examples, '
      f'{parts.data.source.num_classes} classes',
      f'parameters  {parts.num_params:,}',
      f'steps       {parts.train.duration:,}' + (f', going on after step {start:,}' if start else ''),
      f'workdir     {workdir}']
  return '\n'.join(lines)


def _pairs(values):
  return '  '.join(f'{name} {value:.4f}' for name, value in values.items())

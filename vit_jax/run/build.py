"""From a config to the parts of a run, built but not run: `build`; those that compile: `build_program`."""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from absl import logging
from clu import parameter_overview
from flax import nnx
import jax

from vit_jax.base import platform
from vit_jax.base.durations import Pace
from vit_jax.base.errors import UserError
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.distributed import strategy as strategy_lib
from vit_jax.distributed.strategy import Strategy
from vit_jax.evaluators import EVALUATORS
from vit_jax.evaluators.base import Direction, EvalContext, Evaluator
from vit_jax.models.base import Model
from vit_jax.models.registry import MODELS
from vit_jax.objectives import OBJECTIVES, batch_mixing
from vit_jax.objectives.base import EMA, TEACHER, Objective, ObjectiveContext, Teacher
from vit_jax.run import config as config_lib
from vit_jax.run import teacher as teacher_lib
from vit_jax.run.config import Recipe, RunConfig
from vit_jax.training import optim
from vit_jax.training.optim import Optimizer
from vit_jax.training.state import TrainState, join_params
from vit_jax.training.step import (
  BatchSplit,
  ExampleLosses,
  Gradients,
  Step,
  StepModel,
  make_gradients,
  make_losses,
  make_train_step,
)

# Folded into the run's seed for what an objective initializes, so that a model's own numbers do not depend on it.
_OBJECTIVE_STREAM = 0x6F626A


@dataclasses.dataclass(frozen=True)
class Program:
  """The model and the step: all that compiles, and needs no data to be built.

  Attributes:
    config: of the run; its `model` knows the data's image size, channels and classes.
    pace: examples per step and per epoch.
    num_steps: length of the run.
    strategy: how steps are spread over devices.
    model: the model without values, which answers questions about its parameters.
    merge: params → model.
    objective: what the step minimizes.
    init_objective: params of the model → (parameters of the objective, running averages) at step 0.
    create: () → TrainState at step 0, without constants.
    constants: `TrainState.constants`, NumPy arrays; None if the objective reads none.
    step: (state, batch) → (state, metrics).
    gradients: first half of the step.
    shard_gradients: the same without the mean over devices, if a call sees the shard of one.
    losses: of every example that a call sees.
    optimizer: its second half, and its learning rate.
    num_micro_batches: per step and device.
    overview: a table of the parameters.
    num_params: how many there are.
  """
  config: RunConfig
  pace: Pace
  num_steps: int
  strategy: Strategy
  model: Model
  merge: Callable[[Any], Any]
  objective: Objective
  init_objective: Callable[[Any], tuple[Any, Any]]
  create: Callable[[], TrainState]
  constants: Any
  step: Step
  gradients: Gradients
  shard_gradients: Gradients
  losses: ExampleLosses
  optimizer: Optimizer
  num_micro_batches: int
  overview: str
  num_params: int

  def abstract_state(self) -> TrainState:
    """Return the shapes of the state that a step takes."""
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return dataclasses.replace(jax.eval_shape(self.create), constants=shapes(self.constants))


@dataclasses.dataclass(frozen=True)
class Parts(Program):
  """What a config describes, built but not run.

  Attributes:
    data: opened dataset.
    context: what the evaluators share.
    evaluators: {name: evaluator}.
    metrics: {'NAME/METRIC' or 'NAME_ema/METRIC' of an evaluation: which is better}.
  """
  data: Dataset
  context: EvalContext
  evaluators: dict[str, Evaluator]
  metrics: dict[str, Direction]


def build(recipe: Recipe | RunConfig) -> Parts:
  """Build all parts of a run.

  Raises:
    UserError: a bad config; before anything compiles.
  """
  config = recipe if isinstance(recipe, RunConfig) else config_lib.read(recipe)
  platform.require(config.platform)
  strategy = make_strategy(config)
  data = Dataset(config.data, config.seed, jax.process_index(), jax.process_count())
  program = build_program(config, strategy, data.source.info, data.source.class_names)
  # Training holds micro-batches; evaluation need not hold more.
  context = EvalContext(program.merge, program.config.normalization, program.objective, program.strategy, data,
                        config.data.batch_size // program.num_micro_batches, program.model.num_classes,
                        getattr(config.objective, 'loss', 'sigmoid' if data.source.info.multi_label else 'softmax'))
  evaluators = {name: EVALUATORS[keys.kind](keys, context) for name, keys in config.evaluators.items()}
  suffixes = [''] if program.abstract_state().averaged_params is None else ['', '_ema']
  metrics = {f'{name}{suffix}/{metric}': better for name, evaluator in evaluators.items() for suffix in suffixes
             for metric, better in evaluator.metrics.items()}
  _check_best(config, metrics)
  return Parts(**vars(program), data=data, context=context, evaluators=evaluators, metrics=metrics)


def make_strategy(config: RunConfig, devices: Sequence[Any] | None = None) -> Strategy:
  """Return the strategy of a config for `devices` (None: those that jax finds); check that the batch divides."""
  strategy = strategy_lib.build(config.parallel, devices)
  strategy.num_micro_batches(config.data.batch_size, config.train.micro_batch)  # an error here, before data is opened
  return strategy


def build_program(config: RunConfig, strategy: Strategy, info: DatasetInfo,
                  class_names: Sequence[str] | None = None) -> Program:
  """Build the model and the step.

  Args:
    config: of the run.
    strategy: see `make_strategy`.
    info: of the training data.
    class_names: of the training data, which a teacher's must be; None if the data is not opened.

  Raises:
    UserError: a bad value, or sizes that do not fit each other.
  """
  config = _with_data(config, info)
  pace = Pace(config.data.batch_size, info.num_examples * config.data.repeats)
  num_steps = pace.steps(config.train.duration)
  split = BatchSplit(strategy.num_micro_batches(config.data.batch_size, config.train.micro_batch),
                     1 if strategy.axis_name else strategy.num_shards, strategy.axis_name)

  def make_model() -> Any:
    return MODELS[config.model.kind](config.model, rngs=nnx.Rngs(config.seed))

  model = nnx.eval_shape(make_model)
  strategy = strategy.for_model(model)
  graphdef, _ = nnx.split(model, nnx.Param)
  teacher, constants = _load_teacher(config, info, class_names)
  objective = OBJECTIVES[config.objective.kind](
      config.objective, ObjectiveContext(info, model, config.normalization, pace, num_steps, teacher))

  def init_objective(params: Any) -> tuple[Any, Any]:
    return objective.init(params, jax.random.fold_in(jax.random.key(config.seed), _OBJECTIVE_STREAM))

  def initial() -> tuple[Any, Any]:
    params = nnx.to_pure_dict(nnx.state(make_model(), nnx.Param))
    own, averages = init_objective(params)
    return join_params(params, own), averages

  abstract_params, abstract_averages = jax.eval_shape(initial)
  _check_one_ema(config, abstract_averages)
  optimizer = optim.build(config.optim, num_steps, pace, model, abstract_params)
  jax.eval_shape(optimizer.transform.init, abstract_params)  # a bad mask is an error here
  merge = lambda params: nnx.merge(graphdef, params)
  what = StepModel(merge, model.unstack, model.stack), objective
  prepare = _preparation(config, info, strategy, split)
  step = make_train_step(*what, optimizer, prepare, split, seed=config.seed, ema_decay=config.train.ema_decay,
                         ema_warmup=config.train.ema_warmup)

  def create() -> TrainState:
    params, averages = initial()
    return TrainState.create(params, optimizer.transform, ema=config.train.ema_decay is not None, averages=averages)

  strategy.abstract(jax.eval_shape(create))  # sizes that a mesh does not divide are an error here
  return Program(
      config=config, pace=pace, num_steps=num_steps, strategy=strategy, model=model, merge=merge, objective=objective,
      init_objective=jax.jit(init_objective), create=jax.jit(create), constants=constants, step=step,
      **_first_halves(what, optimizer, prepare, split, config.seed), optimizer=optimizer,
      num_micro_batches=split.num_micro_batches,
      overview=parameter_overview.get_parameter_overview(abstract_params, include_stats=False),
      num_params=sum(x.size for x in jax.tree.leaves(abstract_params)))


def _first_halves(what: tuple[StepModel, Objective], optimizer: Optimizer, prepare: Callable[..., Any],
                  split: BatchSplit, seed: int) -> dict[str, Any]:
  """Return what `Program` has of the step's first half."""
  gradients = lambda split: make_gradients(*what, optimizer.frozen, prepare, split, seed=seed)
  return dict(gradients=gradients(split), shard_gradients=gradients(dataclasses.replace(split, axis_name=None)),
              losses=make_losses(*what, prepare, split, seed=seed))


def _with_data(config: RunConfig, info: DatasetInfo) -> RunConfig:
  """Return a config whose model and normalization know the data."""
  # Weights bring the statistics of their own images: those of a stem that is adapted are adapted with it.
  normalization = config.normalization.for_channels(info.channels) if config.init else config.normalization
  normalization.check_channels(info.channels)
  num_classes = info.num_classes if OBJECTIVES[config.objective.kind].reads_labels else None
  config = dataclasses.replace(config, normalization=normalization, model=dataclasses.replace(
      config.model, image_size=config.data.image_size, channels=info.channels, num_classes=num_classes))
  if unseen := getattr(config.model, 'unseen_pixels', None):  # models of patches have it
    logging.warning('%s', unseen)
  return config


def _load_teacher(config: RunConfig, info: DatasetInfo,
                  class_names: Sequence[str] | None) -> tuple[Teacher | None, Any]:
  """Return the teacher that the objective names, and the state's constants."""
  source = getattr(config.objective, 'teacher', None)
  if source is None:
    return None, None
  teacher, params = teacher_lib.load(source, info, class_names)
  return teacher, {TEACHER: params}


def _preparation(config: RunConfig, info: DatasetInfo, strategy: Strategy, split: BatchSplit) -> Callable[..., Any]:
  """Return (batch, keys) → batch: what is done to a batch on the devices before the objective sees it."""
  mixing = batch_mixing.build(config.mix, info.num_classes)
  if mixing is not None:
    batch_mixing.check_pairs(config.data.batch_size, strategy.num_shards, split.num_micro_batches)

  def prepare(batch: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
    batch = dict(batch, image=config.normalization(batch['image']))
    return batch if mixing is None else mixing(batch, keys)

  return prepare


def _check_one_ema(config: RunConfig, averages: Any) -> None:
  """Raise UserError if an objective that keeps an EMA of the parameters is asked for another one."""
  if EMA in averages and config.train.ema_decay is not None:
    raise UserError(f'train.ema_decay: objective.kind={config.objective.kind!r} keeps an EMA of its own, which is '
                    f'evaluated and loaded as such; leave train.ema_decay out, got {config.train.ema_decay}')


def _check_best(config: RunConfig, metrics: Mapping[str, Direction]) -> None:
  """Raise UserError if checkpoints are to be ranked by a metric that is not measured."""
  if config.checkpoint.keep_best and config.checkpoint.best not in metrics:
    raise UserError(f'checkpoint.best: {config.checkpoint.best!r} is not measured; choose from {sorted(metrics)}')

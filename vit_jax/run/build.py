"""From a config to the parts of a run, built but not run: `build`; of those, what compiles: `build_program`."""
import dataclasses
from typing import Any, Callable

from clu import parameter_overview
from flax import nnx
import jax

from vit_jax.run import config as config_lib
from vit_jax import evaluators as evaluators_lib
from vit_jax.base import platform
from vit_jax.pretrained import transfer
from vit_jax.data.loading.dataset import Dataset
from vit_jax.models.vit import VisionTransformer
from vit_jax.base.preprocessing import Normalization
from vit_jax.objectives import batch_mixing as mix
from vit_jax.training import optim
from vit_jax.distributed import strategy as parallel
from vit_jax.rundir.checkpoint import check_options
from vit_jax.objectives.classification import Classification
from vit_jax.training.state import TrainState
from vit_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """The model and the step: all that compiles, and needs no data to be built.

  Attributes:
    config: the resolved config.
    train: the loop's own settings, durations in steps.
    strategy: how steps are spread over devices.
    graphdef: the model's NNX graph definition.
    objective: what the step minimises.
    normalize: from uint8 to float images.
    create: () → TrainState at step 0.
    step: (state, batch) → (state, metrics).
    accumulate: micro-batches in a step.
    schedule: step → learning rate.
    overview: a table of the parameters.
    num_params: how many there are.
  """
  config: Any
  train: config_lib.Train
  strategy: Any
  graphdef: Any
  objective: Any
  normalize: Normalization
  create: Callable[[], TrainState]
  step: Callable[..., Any]
  accumulate: int
  schedule: Callable[..., Any]
  overview: str
  num_params: int


@dataclasses.dataclass(frozen=True)
class Parts(Program):
  """What a config describes, built but not run.

  Attributes:
    checkpoint: arguments of `Checkpoints`, the interval in steps or minutes.
    data: opened data set.
    evaluators: {name: evaluator}.
  """
  checkpoint: dict[str, Any]
  data: Dataset
  evaluators: dict[str, Callable[..., dict[str, float]]]


def build(config) -> Parts:
  """Builds all parts of a run from a config; raises ValueError for a bad one, before anything compiles."""
  config = config_lib.resolve(config)
  platform.require(config.platform)
  sections = config.to_dict()
  strategy = make_strategy(config)
  data = Dataset(config.seed, jax.process_index(), jax.process_count(), **sections['data'])
  program = build_program(config, strategy, data.source.facts)

  def evaluator(kind, **arguments):
    # Training holds micro-batches; evaluation need not hold more.
    return evaluators_lib.EVALUATORS[kind](program.graphdef, program.objective, program.normalize, strategy, data,
                                           config.data.batch_size // program.accumulate, **arguments)

  checkpoint = _in_steps(config, 'checkpoint', data.source.facts)
  check_options(checkpoint['every'], checkpoint['keep'], checkpoint['keep_best'])
  suffixes = [''] if program.train.ema_decay is None else ['', '_ema']
  measured = sorted(f'{name}{suffix}/{metric}' for name, keys in sections['evaluators'].items() for suffix in suffixes
                    for metric in evaluators_lib.EVALUATORS[keys['kind']].METRICS)
  if checkpoint['keep_best'] and checkpoint['best'] not in measured:
    raise ValueError(f"checkpoint.best={checkpoint['best']!r} is not measured; choose from {measured}")
  return Parts(**vars(program), checkpoint=checkpoint, data=data,
               evaluators={name: evaluator(**keys) for name, keys in sections['evaluators'].items()})


def make_strategy(config, devices=None):
  """The strategy of a resolved config for `devices`, or for those that jax finds; checks that the batch divides."""
  strategy = parallel.build(**config.parallel.to_dict(), devices=devices)
  strategy.micro_batches(config.data.batch_size, config.train.micro_batch)  # an error here, before data is opened
  return strategy


def build_program(config, strategy, facts) -> Program:
  """Builds the model and the step.

  Args:
    config: resolved.
    strategy: see `make_strategy`.
    facts: of the training data, see `data.facts`.

  Raises:
    ValueError: a bad value, or sizes that do not fit each other.
  """
  sections = config.to_dict()
  train = config_lib.Train(**_in_steps(config, 'train', facts))
  accumulate = strategy.micro_batches(config.data.batch_size, train.micro_batch)
  make_model = lambda: VisionTransformer(
      image_size=sections['data']['image_size'], channels=facts.channels, num_classes=facts.num_classes,
      rngs=nnx.Rngs(config.seed), **sections['model'])
  graphdef, abstract_params = nnx.split(nnx.eval_shape(make_model), nnx.Param)
  abstract_params = nnx.to_pure_dict(abstract_params)
  optimizer, schedule = optim.build(train.duration, **_in_steps(config, 'optim', facts))
  frozen = optim.frozen_tree(abstract_params, config.optim.freeze)
  jax.eval_shape(optimizer.init, abstract_params)  # a bad mask is an error here
  objective, normalize = Classification(**sections['objective']), Normalization(**sections['normalization'])
  objective.check(facts.num_classes, facts.many_labels)
  mixing = mix.build(facts.num_classes, **sections['mix'])
  if mixing:
    mix.check_pairs(config.data.batch_size, strategy.shares, accumulate)
  transfer.Transfer(**sections['transfer'])  # a bad one is an error here
  step = make_train_step(graphdef, objective, optimizer, normalize, seed=config.seed, accumulate=accumulate,
                         ema_decay=train.ema_decay, axis_name=strategy.axis_name, by_block=config.model.unroll,
                         frozen=frozen, mix=mixing, shards=1 if strategy.axis_name else strategy.shares)

  def create():
    params = nnx.to_pure_dict(nnx.state(make_model(), nnx.Param))
    return TrainState.create(params, optimizer, ema=train.ema_decay is not None)

  strategy.abstract(jax.eval_shape(create))  # sizes that a mesh does not divide are an error here
  return Program(
      config=config, train=train, strategy=strategy, graphdef=graphdef, objective=objective, normalize=normalize,
      create=jax.jit(create), step=step, accumulate=accumulate, schedule=schedule,
      overview=parameter_overview.get_parameter_overview(abstract_params, include_stats=False),
      num_params=sum(x.size for x in jax.tree.leaves(abstract_params)))


def _in_steps(config, section, facts):
  """The arguments of a section, durations in steps."""
  return config_lib.in_steps(section, config[section].to_dict(), batch_size=config.data.batch_size,
                             examples=facts.examples * config.data.repeats)

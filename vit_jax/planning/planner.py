"""From a recipe to a plan: `plan(recipe, 'v5e:16x16')`."""
import dataclasses

from vit_jax.base.errors import FileError, UserError
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources.info import KNOWN_DATASETS, DatasetInfo
from vit_jax.planning import estimate as estimate_lib
from vit_jax.planning import search as search_lib
from vit_jax.planning import topology as topology_lib
from vit_jax.planning.estimate import Log, no_log
from vit_jax.planning.plan import Plan
from vit_jax.pretrained import transfer
from vit_jax.run import config as config_lib
from vit_jax.run.config import Recipe, RunConfig


def plan(recipe: Recipe, topology: str | None = None, *, num_classes: int | None = None, search: bool = False,
         log: Log = no_log) -> Plan:
  """Plan a training step.

  Args:
    recipe: as for `train.run`, see `configs/`.
    topology: TPU slice, see `topology.parse`; None plans for the devices that jax finds.
    num_classes: of the data. None: as `data.sources.info` knows them, or else as the dataset has them, which is opened.
    search: whether to find the largest batch that fits, see `search.search`.
    log: called with lines of progress.

  Raises:
    UserError: a bad recipe or topology, no TPU compiler, weights or data that cannot be read.
  """
  tpu = None if topology is None else topology_lib.tpu_slice(topology)
  values = config_lib.as_dict(recipe)
  values['init'] = values.get('init') or None  # a fine-tune whose weights are not given yet: the recipe's own model
  values, _ = transfer.fill_model(values)
  config = config_lib.read(values)
  info = dataset_info(config, num_classes)
  if search:
    return search_lib.search(values, info, tpu, log)
  return estimate_lib.estimate(config, info, tpu, log)


def dataset_info(config: RunConfig, num_classes: int | None = None) -> DatasetInfo:
  """Return the numbers of the training data; opens the dataset only if they are neither given nor known.

  Raises:
    UserError: the dataset cannot be opened.
  """
  known = KNOWN_DATASETS.get(config.data.name)
  if num_classes is not None:
    # The number of examples changes the schedule, not the cost of a step.
    known = dataclasses.replace(known or DatasetInfo(1_000_000, 0, 3), num_classes=num_classes)
  elif known is None:
    try:
      known = Dataset(config.data, config.seed).source.info
    except (UserError, OSError) as error:
      kind = FileError if isinstance(error, OSError) else UserError
      raise kind(f'{error}\nA plan needs no data if it knows the classes: --num_classes=N') from error
  return dataclasses.replace(known, channels=config.data.channels or known.channels)

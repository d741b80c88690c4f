"""Contact sheets of what an objective hides of images, and of what a trained model fills in."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.base.pictures import Cell
from vit_jax.data.loading.dataset import Dataset
from vit_jax.objectives.masked.base import MaskedObjective
from vit_jax.run import evaluation, start
from vit_jax.run.build import Parts
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.restoring import pick_step
from vit_jax.training.state import model_params, own_params

_GRAY = 128


def rows(workdir: PathLike, count: int, step: int | None = None) -> list[list[Cell]]:
  """Return what a run's model makes of some images, spread evenly over the split that its first evaluator reads.

  Args:
    workdir: of a run whose objective hides patches.
    count: number of images.
    step: of the checkpoint; None is the latest.

  Returns:
    Three rows for `pictures.draw`, an image in each column: the original, the same with hidden patches gray, and these
    filled in. Without evaluators, the images are of the training split.

  Raises:
    UserError: no such run or checkpoint, another objective, or more images than there are.
  """
  run_dir = RunDir(workdir)
  parts = evaluation.build_on_any_devices(run_dir.read_config())
  objective = parts.objective
  if not isinstance(objective, MaskedObjective):
    raise UserError(f'--workdir: the objective of {workdir} is {parts.config.objective.kind!r}, which hides no '
                    "patches; runs of 'masked_patches', 'mae' and 'simmim' have reconstructions")
  data = _examples(parts, count)
  checkpoints = Checkpoints(run_dir.checkpoints_path, parts.config.checkpoint, read_only=True)
  try:
    at = start.restore(parts, checkpoints, pick_step(checkpoints.steps(), step, run_dir), any_class_order=True)
  finally:
    checkpoints.close()
  params, batch = parts.strategy.fetch(at.state).params, next(iter(data.eval_train_split(count)))
  normalized = dict(image=parts.config.normalization(jnp.asarray(batch['image'])), id=batch['id'])
  found = jax.jit(lambda params, batch: objective.reconstruct(
      parts.merge(model_params(params)), own_params(params), batch))(params, normalized)
  original, filled = (np.rint(255 * np.asarray(x)).astype(np.uint8) for x in (found.original, found.filled))
  hidden = np.where(np.asarray(found.hidden)[..., None], np.uint8(_GRAY), original)
  return [[(image, title) for image in images] for images, title in
          ((original, 'original'), (hidden, 'hidden'), (filled, 'filled in'))]


def _examples(parts: Parts, count: int) -> Dataset:
  """Return a dataset of `count` images."""
  config = parts.config
  splits = [keys.split for keys in config.evaluators.values() if hasattr(keys, 'split')]
  changes = dict(train_split=splits[0], exclude=None) if splits else {}
  data = Dataset(dataclasses.replace(config.data, cache=False, **changes), config.seed)
  if not 1 <= count <= len(data.source):
    raise UserError(f'--count: must be in 1..{len(data.source)}, the number of images in {data.source.split}; '
                    f'got {count}')
  return data.restricted_to(np.linspace(0, len(data.source) - 1, count).astype(int).tolist())

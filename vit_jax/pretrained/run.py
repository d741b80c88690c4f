"""Reads the model of a run of ours: the parameters of a checkpoint and what the record beside them says."""
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.rundir.checkpoint import open_to_read


def is_workdir(path):
  """Whether a folder, local or gs://, is that of a run."""
  path = epath.Path(path)
  return (path / 'config.json').exists() and (path / 'checkpoints').is_dir()


def read(path, *, step=None, average=False):
  """Reads the `Weights` of a run's checkpoint.

  Args:
    path: workdir, local or gs://.
    step: of the checkpoint; None is the latest.
    average: the moving average of the parameters instead of the last ones.

  Raises:
    ValueError: no such checkpoint, or no average in it.
  """
  path = epath.Path(path)
  handlers = dict(state=ocp.PyTreeCheckpointHandler(), run=ocp.JsonCheckpointHandler())
  with open_to_read(path.absolute() / 'checkpoints', item_handlers=handlers) as manager:
    steps = sorted(manager.all_steps())
    if not steps or step not in (None, *steps):
      raise ValueError(f'{path} has no checkpoint' + (f' of step {step}; there are {steps}' if steps else ' yet'))
    step = steps[-1] if step is None else step
    run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))['run']
    name = 'ema' if average else 'params'
    if average and run['config']['train'].get('ema_decay') is None:
      raise ValueError(f'{path} was trained without train.ema_decay: it has no averaged parameters')
    params = _restored(manager, step, name)
  return _weights(run, params, f'{path}, step {step}' + (', averaged parameters' if average else ''))


def _restored(manager, step, name):
  """One tree of the state as NumPy arrays; optimizer and the rest are left on the disk."""
  metadata = manager.item_metadata(step)['state'].tree[name]
  item = {name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)}
  arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
  state = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
  return manager.restore(step, args=ocp.args.Composite(state=state))['state'][name]


def _weights(run, params, where):
  config = run['config']
  head = params.get('head')
  fields = weights_lib.complete(dict(
      config['model'], image_size=tuple(run['image_size']), channels=run['channels'],
      num_classes=None if head is None else head['bias'].shape[0]))
  listed = lambda value: tuple(value) if isinstance(value, list) else value
  preprocessing = Preprocessing(config['data']['eval_transform'],
                                **{name: listed(config['normalization'][name]) for name in ('mean', 'std')})
  return weights_lib.Weights(fields, params, preprocessing, tuple(run['class_names']) if run['class_names'] else None,
                             notes=(where,))

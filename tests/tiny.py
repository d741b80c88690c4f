"""A recipe that runs the true loop in seconds: the shipped digits, shrunk."""
import json
import os
import pathlib
import subprocess
import sys

from flax import nnx

from vit_jax.base.durations import Pace
from vit_jax.base.preprocessing import Normalization
from vit_jax.configs import digits
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives.base import ObjectiveContext

ROOT = pathlib.Path(__file__).parent.parent


def config(data_dir, **changes):
  """`configs/digits.py` made tiny, dropout and augmentation on; `changes` such as {'optim.peak_lr': 1e-3} on top."""
  tiny = digits.get_config()
  tiny.data.update(data_dir=str(data_dir), batch_size=64, train_split='train[:300]', train_transform='pad_crop(1)',
                   threads=1)
  tiny.model = dict(patch_size=4, width=16, depth=2, heads=2, mlp_dim=32, dropout=0.1, attention_dropout=0.1)
  tiny.train = dict(duration='12 steps', log_every='1 steps', eval_every='6 steps', ema_decay=0.9)
  tiny.optim = dict(peak_lr=3e-3, warmup='4 steps', weight_decay=0.05)
  tiny.checkpoint = dict(every='4 steps')
  tiny.evaluators = dict(test=dict(kind='classification', split='test[:100]'))
  for key, value in changes.items():
    section, _, name = key.rpartition('.')
    if section and section not in tiny:
      tiny[section] = {}
    with tiny.ignore_type():
      (tiny[section] if section else tiny)[name] = value
  return tiny


def objective_context(info, **fields):
  """Return what a run gives its objective, with a tiny ViT of these fields."""
  config = ViTConfig(**{**dict(image_size=8, channels=info.channels, patch_size=4, width=16, depth=2, heads=2, mlp_dim=32,
                               num_classes=None), **fields})
  model = nnx.eval_shape(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)))
  return ObjectiveContext(info, model, Normalization(), Pace(10, info.num_examples), num_steps=10)


def write(config, folder):
  """Write `config` as a recipe file, for command lines."""
  path = pathlib.Path(folder) / 'recipe.py'
  text = json.dumps(config.to_dict())
  path.write_text('import json\nimport ml_collections\n\ndef get_config():\n'
                  f'  return ml_collections.ConfigDict(json.loads({text!r}))\n')
  return path


def command(module, *arguments, devices=1):
  """Start `python -m vit_jax.MODULE` on `devices` fake CPU devices."""
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}')
  return subprocess.Popen([sys.executable, '-m', f'vit_jax.{module}', *map(str, arguments)], cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def metrics(workdir, names=('train/loss', 'train/accuracy', 'train/grad_norm')):
  """Return [(step, value, …)] of `names`, from the lines of metrics.jsonl that have them."""
  lines = map(json.loads, (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines())
  return [(line['step'], *(line[name] for name in names)) for line in lines if names[0] in line]

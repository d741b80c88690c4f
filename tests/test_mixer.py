"""An MLP-Mixer through the whole framework: training, devices, checkpoints, fine-tuning, describing, converting."""
import json
import shutil

import numpy as np
import pytest

from tests import golden_files, tiny
import vit_jax
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.pretrained import describe, load
from vit_jax.pretrained.adapt import Adaptation

MODEL = dict(kind='mixer', patch_size=2, width=16, depth=2, token_mlp_dim=8, channel_mlp_dim=32, stochastic_depth=0.1)


def config(data_dir, **changes):
  return tiny.config(data_dir, **{'model': dict(MODEL), 'checkpoint.keep': 3, 'optim.peak_lr': 0.02, **changes})


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """Return the run directory of twelve steps on one device."""
  workdir = tmp_path_factory.mktemp('mixer') / 'run'
  train.run(config(data_dir), workdir)
  return workdir


def test_the_loss_falls_and_a_resumed_run_ends_the_same(run, data_dir, tmp_path):
  losses = [loss for _, loss in tiny.metrics(run, ['train/loss'])]
  assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02
  shutil.copytree(run, tmp_path / 'run')
  for step in (8, 12):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step))
  train.run(config(data_dir), tmp_path / 'run')
  golden_files.assert_same_params(load.read(tmp_path / 'run').params, load.read(run).params)


@pytest.mark.slow
def test_eight_devices_train_alike(run, data_dir, tmp_path):
  """With pmap, and on a mesh that shards parameters and hidden features; unrolled too."""
  strategies = {'pmap': {}, 'mesh': {'parallel.strategy': 'mesh', 'parallel.data': 2, 'parallel.fsdp': 2,
                                     'parallel.tensor': 2, 'model': dict(MODEL, unroll=True)}}
  for name, changes in strategies.items():
    (tmp_path / name).mkdir()
    recipe = tiny.write(config(data_dir, **{'train.duration': '6 steps', **changes}), tmp_path / name)
    process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / name / "run"}', devices=8)
    output = process.communicate()
    assert process.returncode == 0, output
  names = ('train/loss', 'train/grad_norm')
  one_device = tmp_path / 'one'
  train.run(config(data_dir, **{'train.duration': '6 steps'}), one_device)
  for name in strategies:
    np.testing.assert_allclose(tiny.metrics(tmp_path / name / 'run', names), tiny.metrics(one_device, names), rtol=2e-5)


def test_fine_tuning_for_other_classes(run, data_dir, tmp_path):
  """The shipped recipe turns off a hidden layer that a Mixer does not have."""
  recipe = config(data_dir, init=str(run), model=dict(variant=None, representation_size=None, head_bias=0.0),
                  **{'data.name': 'tiny_shapes', 'data.train_split': 'train', 'data.train_transform': 'resize|flip',
                     'data.image_size': 8, 'data.eval_transform': 'resize', 'data.batch_size': 8,
                     'train.duration': '8 steps', 'train.eval_every': '8 steps', 'transfer.reset_head': True})
  recipe.evaluators = {}
  train.run(recipe, tmp_path / 'run')
  weights = load.read(tmp_path / 'run')
  assert weights.config.kind == 'mixer' and weights.config.token_mlp_dim == 8 and weights.config.num_classes != 10


def test_another_number_of_patches_is_refused_before_compilation(run, data_dir, tmp_path):
  message = (r"image_size: a model of kind 'mixer' fits one number of patches, here 4×4 \(images of 8×8 pixels\), got 8×8; "
             r'encoder/blocks/token_mixing/down/bias, .* depend on it')
  with pytest.raises(UserError, match=message):
    train.run(config(data_dir, init=str(run), **{'data.image_size': 16, 'data.eval_transform': 'resize'}), tmp_path / 'run')
  with pytest.raises(UserError, match=message):
    vit_jax.load(run, image_size=16)
  assert vit_jax.load(run, image_size=16, patch_size=4).image_size == (16, 16)  # as many, larger patches


def test_describe_and_convert(run, tmp_path):
  description = describe.describe(run, adaptation=Adaptation(num_classes=3))
  assert description.fields['token_mlp_dim'] == 8 and 'head: reset to zeros for 3 classes (was 10)' in description.fine_tune
  assert json.dumps(description.to_json()) and 'token_mixing' in description.table
  model = vit_jax.load(run)
  for format, path in (('google', tmp_path / 'mixer.npz'), ('timm', tmp_path / 'mixer')):
    vit_jax.save(model, path, format, approximate=True)
    back = load.read(path)
    assert back.source == format and back.config.image_size == (8, 8)
    golden_files.assert_same_params(back.params, load.read(run).params)
  with pytest.raises(UserError, match="model.kind: the huggingface format cannot hold a model of kind 'mixer'"):
    vit_jax.save(model, tmp_path / 'other', 'huggingface')
  assert model.predict([np.zeros((8, 8), np.uint8)]).shape == (1, 10)


def test_keys_of_a_vision_transformer_are_unknown(data_dir):
  with pytest.raises(UserError, match='model.heads: unknown config key'):
    train.run(config(data_dir, model=dict(MODEL, heads=2)), '/nowhere')

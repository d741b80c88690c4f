"""Every public family of weights: a tiny file of its published layout is fine-tuned, described and used to predict."""
import json

import numpy as np
import pytest

from tests import golden_files, tiny
from tests.conftest import encode
from vit_jax import predict, train
from vit_jax.pretrained import describe, load

FAMILIES = (
    'bit_official', 'hybrid_r', 'mixer',
    'hf_vit', 'hf_vit_problem_multilabel', 'hf_deit_distilled', 'hf_dinov2', 'hf_dinov2_registers',
    'hf_dinov2_swiglu_classifier', 'hf_dinov3', 'hf_dinov3_gated', 'hf_siglip_vision', 'hf_clip_vision', 'hf_mae',
    'hf_beit', 'hf_bit',
    'timm_token', 'timm_registers_no_class', 'timm_siglip_floor', 'timm_bit_resnet', 'timm_hybrid', 'timm_mixer',
    'timm_clip', 'timm_clip_quickgelu', 'timm_deit_distilled', 'timm_dinov2_swiglu', 'timm_dinov3', 'timm_eva02',
    'timm_relpos')

PATHS = {**golden_files.MODELS, **golden_files.FAMILIES}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', FAMILIES)
def test_fine_tuning_on_digits(name, data_dir, tmp_path):
  """A new head, one channel instead of three: the loss falls within a few steps."""
  init = PATHS[name]
  config = tiny.config(data_dir, init=str(init), **{
      'data.image_size': [min(pixels, 64) for pixels in load.read(init).config.image_size],  # ResNets take any size
      'data.batch_size': 32, 'data.train_transform': 'resize',
      'data.eval_transform': 'resize', 'optim.peak_lr': 1e-2, 'optim.warmup': '2 steps', 'train.ema_decay': None})
  config.model = {}
  config.train.update(duration='24 steps', eval_every='24 steps')
  train.run(config, tmp_path)
  losses = np.array([loss for _, loss in tiny.metrics(tmp_path, ('train/loss',))])
  assert losses[0] == pytest.approx(np.log(10), abs=1e-4) and losses[-3:].mean() < losses[:3].mean() - 0.02, losses


@pytest.mark.parametrize('name', FAMILIES)
def test_describe_and_predict(name, tmp_path, capsys):
  init = PATHS[name]
  description = describe.describe(init)
  text = description.to_text()
  assert description.format in text and not description.problems
  (tmp_path / 'image.png').write_bytes(encode(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)))
  model = load.load(init)
  if model.num_classes is None:
    assert model.embed(model.preprocess(tmp_path / 'image.png')).ndim == 2
    return
  assert predict.run(str(init), [str(tmp_path / 'image.png')], form='json', top=100) == 0
  predictions = json.loads(capsys.readouterr().out)['predictions']
  total = sum(best['probability'] for best in predictions)
  assert len(predictions) == model.num_classes
  assert (total == pytest.approx(1, abs=1e-5)) == (model.loss == 'softmax')

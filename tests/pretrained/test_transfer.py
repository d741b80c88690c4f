"""Section `transfer`, and the parameters that a fine-tune starts from."""
import dataclasses

import numpy as np
import pytest

from tests import golden_files
from vit_jax.base import sections
from vit_jax.base.errors import UserError
from vit_jax.pretrained import transfer
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.transfer import TransferConfig
from vit_jax.rundir.layout import RunDir


def test_section_is_checked():
  assert sections.read(TransferConfig, {}, 'transfer') == TransferConfig(reset_head=False, resize=None)
  assert sections.read(TransferConfig, {'resize': 'bicubic'}, 'transfer').resize == 'bicubic'
  with pytest.raises(UserError, match=r"transfer.resize: unknown 'nearest'; choose from \['bicubic', 'bilinear'\]"):
    sections.read(TransferConfig, {'resize': 'nearest'}, 'transfer')
  with pytest.raises(UserError, match='transfer.reset_heads: unknown config key; did you mean transfer.reset_head'):
    sections.read(TransferConfig, {'reset_heads': True}, 'transfer')


def test_the_model_section_is_that_of_the_weights_with_what_the_recipe_gives():
  init = str(golden_files.MODELS['hf_vit'])
  config, weights = transfer.fill_model(dict(init=init, model=dict(dropout=0.1, gelu='tanh'), seed=3))
  assert weights.source == 'huggingface' and config['seed'] == 3
  assert config['model']['width'] == 24 and config['model']['dropout'] == 0.1 and config['model']['gelu'] == 'tanh'
  assert config['normalization'] == dict(mean=0.5, std=0.5)
  assert not {'image_size', 'channels', 'num_classes'} & config['model'].keys()  # those follow from the data


def test_without_weights_nothing_changes():
  assert transfer.fill_model(dict(seed=1)) == (dict(seed=1), None)
  with pytest.raises(UserError, match='init: this recipe starts from weights; name them: --config.init='):
    transfer.fill_model(dict(init=''))


def test_a_damaged_config_of_the_run_is_an_error(tmp_path):
  (tmp_path / 'config.json').write_text('{"init": ')
  with pytest.raises(UserError, match='config.json: damaged: .* checkpoint holds a copy'):
    transfer.fill_model(dict(init='google/ViT-B_16'), RunDir(tmp_path))


def test_what_the_weights_lack_is_newly_initialized_and_what_the_model_lacks_left_out():
  weights = golden_files.read('vit_token')
  config = weights_lib.with_fields(weights.config, dict(
      image_size=(24, 16), num_classes=3, layer_scale=0.1, qkv_bias=False, token_position=False))
  new = {path: np.full(shape, 7, np.float32) for path, shape in weights_lib.shapes(config).items()}
  params, lines = transfer.fit(
      weights, weights_lib.unflatten(new), config, tuple('abc'), TransferConfig(resize='bicubic'))
  assert weights_lib.missing_or_different(config, params) == []
  assert (params['encoder']['blocks']['mlp_scale'] == 7).all() and not params['head']['kernel'].any()
  np.testing.assert_array_equal(params['norm']['scale'], weights.params['norm']['scale'])
  assert lines[0] == 'position embedding (learned): grid 4×4 to 6×4, resized, bicubic'
  assert lines[2] == 'head: reset to zeros for 3 classes (was 7)'
  assert lines[3].startswith('not in the weights, newly initialized: encoder/blocks/attention_scale')
  assert lines[4].startswith('not in the model, left out: ') and 'position/token' in lines[4]


def test_a_kept_head_with_other_class_names_is_reported():
  weights = golden_files.read('vit_token')
  named = dataclasses.replace(weights, class_names=tuple('abcdefg'))
  lines = transfer.fit(named, weights.params, weights.config, tuple('tuvwxyz'), TransferConfig())[1]
  assert lines == ['head: kept, although its classes have other names; --config.transfer.reset_head=True resets it']
  assert transfer.fit(named, weights.params, weights.config, named.class_names, TransferConfig())[1] == []

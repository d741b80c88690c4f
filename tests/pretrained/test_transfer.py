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
  with pytest.raises(UserError, match=r"transfer.resize: unknown 'nearest'; choose from \['bicubic', 'bicubic_no_antialias', "):
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


def fit_head(theirs, ours, **options):
  """Return (weights, their head after `fit` to a dataset, messages) for two lists of class names."""
  weights = dataclasses.replace(golden_files.read('vit_token'), class_names=theirs and tuple(theirs))
  config = dataclasses.replace(weights.config, num_classes=len(ours))
  params, lines = transfer.fit(weights, weights_lib.unflatten(
      {path: np.zeros(shape, np.float32) for path, shape in weights_lib.shapes(config).items()}), config, tuple(ours),
      TransferConfig(**options))
  return weights, params['head'], lines


def test_the_same_classes_keep_their_head():
  weights, head, lines = fit_head('abcdefg', 'abcdefg')
  assert lines == []
  np.testing.assert_array_equal(head['kernel'], weights.params['head']['kernel'])


def test_the_same_classes_in_another_order_move_the_rows_of_the_head():
  weights, head, lines = fit_head('abcdefg', 'gabcdfe')
  assert lines == ['head: the data has the same classes in another order; 6 of 7 rows moved, by name']
  for name, value in weights.params['head'].items():
    np.testing.assert_array_equal(head[name], value[..., [6, 0, 1, 2, 3, 5, 4]])


def test_a_kept_head_with_other_class_names_is_a_warning(caplog):
  weights, head, lines = fit_head('abcdefg', 'tuvwxyz')
  assert lines[0].startswith('warning: head: kept, although its classes have other names: a; b; c; d; e and 2 more; ')
  assert 'head: kept, although' in caplog.text and caplog.records[0].levelname == 'WARNING'
  np.testing.assert_array_equal(head['kernel'], weights.params['head']['kernel'])


@pytest.mark.parametrize('theirs', [None, ['zero', 'one', 'two', 'three', 'four', 'five', 'six']])
def test_numbers_on_one_side_are_a_warning(theirs, caplog):
  lines = fit_head(theirs, ['0', '1', '10', '11', '2', '3', '4'])[2]
  assert lines[0].startswith('warning: head: kept, ') and '0' in lines[0] and '--config.transfer.classes=FILE' in lines[0]
  assert 'WARNING' in caplog.text and 'transfer.reset_head=True' in caplog.text


def test_names_on_the_side_of_the_data_only_are_reported(caplog):
  lines = fit_head(None, 'abcdefg')[2]
  assert lines[0].startswith('head: kept; the weights have no class names, so nothing was checked') and not caplog.text


@pytest.mark.parametrize('ours, known', [('abcdefgh', 7), ('abc', 3), ('abcdefx', 6)])
def test_some_of_the_classes_reset_the_head_with_a_warning(ours, known, caplog):
  _, head, lines = fit_head('abcdefg', ours)
  assert not head['kernel'].any() and f'head: reset to zeros for {len(ours)} classes (was 7)' in lines
  assert f'head: reset, although {known} of its 7 classes are among the {len(ours)} of the data' in caplog.text


def test_other_classes_reset_the_head_without_a_warning(caplog):
  assert fit_head('abcdefg', 'xy')[2] == ['head: reset to zeros for 2 classes (was 7)'] and not caplog.text


def test_names_and_trained_size_of_the_weights_can_be_given(tmp_path):
  (tmp_path / 'names.txt').write_text('\n'.join('abcdefg'))
  init, classes = str(golden_files.MODELS['vit_token']), str(tmp_path / 'names.txt')
  _, weights = transfer.fill_model(dict(init=init, transfer=dict(classes=classes, trained_at=(16, 16))))
  assert weights.class_names == tuple('abcdefg')
  with pytest.raises(UserError, match='trained_at: an image of .16, 20. pixels does not have .* 16 positions'):
    transfer.fill_model(dict(init=init, transfer=dict(trained_at=(16, 20))))

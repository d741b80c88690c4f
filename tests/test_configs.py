"""Every shipped recipe builds, without data or memory for it, and says what the paper's tables say."""
import ast
import dataclasses
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.configs import common
from vit_jax.data.sources import registry as sources
from vit_jax.distributed import batch_split
from vit_jax.evaluators import EVALUATORS
from vit_jax.models.config import ViTConfig
from vit_jax.models.registry import MODELS
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives import batch_mixing as mix
from vit_jax.pretrained.formats.weights import Weights, shapes, unflatten
from vit_jax.run import config as config_lib
from vit_jax.run import teacher as teacher_lib
from vit_jax.run.build import build

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
RECIPES = sorted(path.stem for path in CONFIGS.glob('*.py') if path.stem not in ('__init__', 'common'))
ARGUMENTS = {
    'vit': [f'{model},{data}' for model in common.MODELS for data in common.DATASETS],
    'bit': ['r50x1,hyperrule,cifar10'],
    'augreg': ['ti16,imagenet,none', 's32,imagenet21k,strong2', 'l16,imagenet'],
    'mixer': ['b32,imagenet', 'l16,imagenet21k'],
    'masked_patches': ['small_patch,imagenet21k', 'pixels,digits', 'mean_color,fashion_mnist'],
    'mae': ['l16,imagenet21k', 'small,digits', 'small,fashion_mnist'],
    'simmim': ['small,digits', 'small,fashion_mnist'],
    'vit_b16': ['imagenet', 'imagenet21k', 'jft'],
    'vit_h14': ['imagenet', 'imagenet21k', 'jft'],
    'dino': ['b16,imagenet21k', 'small,digits', 'small,fashion_mnist'],
    'distill': ['ti16,imagenet', 'small,digits'],
    'finetune': ['ti16,folder', 'h14,imagenet', 'r50_b32,pets', *(f'b16,{task}' for task in common.TASKS)],
}
CASES = [(recipe, argument) for recipe in RECIPES for argument in [None, *ARGUMENTS.get(recipe, [])]]

# Examples of a split as the data sets' publishers count them, and classes (facts of the paper, section 4.1).
SIZES = {
    ('imagenet2012', 'train[:99%]'): 1_268_355, ('imagenet2012', 'train[99%:]'): 12_812,
    ('imagenet2012', 'validation'): 50_000,
    ('imagenet21k', 'full[102400:]'): 14_197_122 - 102_400, ('imagenet21k', 'full[:102400]'): 102_400,
    ('jft300m', 'train'): 303_000_000, ('jft300m', 'test[:49511]'): 49_511,
}
CLASSES = {'imagenet2012': 1000, 'imagenet21k': 21_843, 'jft300m': 18_291}


class Unread:
  """Records that are counted and never read."""

  def __init__(self, length):
    self.length = length

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    raise AssertionError('building a recipe reads no record')


def recipe(name, argument=None):
  get_config = importlib.import_module(f'vit_jax.configs.{name}').get_config
  return get_config() if argument is None else get_config(argument)


@pytest.fixture
def no_data(monkeypatch):
  def open_source(name, split, data_dir=None):
    length = SIZES.get((name, split), 1000)
    return sources.Source(Unread(length), name=name, split=split, channels=3 if name in CLASSES else 1,
                          class_names=[str(n) for n in range(CLASSES.get(name, 10))])
  monkeypatch.setattr(sources, 'open_source', open_source)


def a_teacher(data):
  """Return zeros for a tiny classifier of a dataset."""
  config = ViTConfig(width=8, depth=1, heads=1, mlp_dim=8, patch_size=4, image_size=(8, 8),
                     channels=3 if data in CLASSES else 1, num_classes=CLASSES.get(data, 10))
  return Weights(config, unflatten({path: np.zeros(shape, np.float32) for path, shape in shapes(config).items()}),
                 class_names=tuple(map(str, range(CLASSES.get(data, 10)))))


@pytest.mark.parametrize('name, argument', CASES)
def test_builds_abstractly(name, argument, no_data, monkeypatch):
  config = recipe(name, argument)
  config.data.cache = False
  if 'objective' in config and 'teacher' in config.objective:
    config.objective.teacher = 'somewhere'
    monkeypatch.setattr(teacher_lib, 'read', lambda source: a_teacher(config.data.name))
  if 'unroll' in config.model:
    config.model.unroll = False  # tracing forty blocks one by one takes long, and test_remat has unrolled ones
  parts = build(config)
  state = parts.abstract_state()
  size, channels = parts.data.image_size, parts.data.source.channels
  n = config.data.batch_size
  batch = dict(image=jax.ShapeDtypeStruct((n, *size, channels), jnp.uint8), label=jax.ShapeDtypeStruct((n,), jnp.int32),
               id=jax.ShapeDtypeStruct((n,), jnp.int32), rng=jax.ShapeDtypeStruct((n,), jnp.uint32))
  after, _ = jax.eval_shape(jax.vmap(parts.step, axis_name='batch', in_axes=(None, 0), out_axes=None), state,
                            jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize('name, argument', [case for case in CASES if case[0] in ('augreg', 'vit', 'vit_s16_i1k')])
def test_pretraining_is_unrolled_in_micro_batches_that_fit(name, argument):
  """On 8 to 256 devices; in pairs, as mixup takes them."""
  config = recipe(name, argument)
  assert config.model.unroll and config.train.micro_batch == common.MICRO_BATCH[config.model.variant]
  for devices in (8, 32, 256):
    count = batch_split.count_micro_batches(config.data.batch_size, devices, config.train.micro_batch)
    mix.check_pairs(config.data.batch_size, devices, count)
    assert config.data.batch_size // devices // count <= config.train.micro_batch


def test_nothing_is_left_to_be_filled_in():
  for path in [CONFIGS.parent / 'README.md', *CONFIGS.glob('*.py')]:
    assert not re.search(r'MEASURE|TODO|[A-Z]+_PARAMS', path.read_text()), path


@pytest.mark.parametrize('name', RECIPES)
def test_header_has_command_hardware_time_and_accuracy(name):
  header = ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))
  for needed in (f'--config=configs/{name}.py', 'Hardware', 'Time', 'Accuracy'):
    assert needed in header


# Paper, table 4: steps and the grid of learning rates; big_vision and vision_transformer warm up over 500 steps, 100.
TABLE_4 = [
    ('imagenet', 20_000, (0.003, 0.01, 0.03, 0.06), 500), ('cifar100', 10_000, (0.001, 0.003, 0.01, 0.03), 500),
    ('cifar10', 10_000, (0.001, 0.003, 0.01, 0.03), 500), ('pets', 500, (0.001, 0.003, 0.01, 0.03), 100),
    ('flowers', 500, (0.001, 0.003, 0.01, 0.03), 100), ('vtab_dtd', 2_500, (0.01,), 500),
]


@pytest.mark.parametrize('task, steps, rates, warmup', TABLE_4)
def test_table_4(task, steps, rates, warmup, no_data):
  parts = build(recipe('finetune', f'b16,{task}'))
  config = parts.config
  assert parts.num_steps == steps and config.optim.peak_lr in rates
  assert float(parts.optimizer.schedule(warmup)) == pytest.approx(config.optim.peak_lr)
  assert float(parts.optimizer.schedule(steps)) == pytest.approx(0.0, abs=1e-9)
  assert config.data.batch_size == 512 and parts.data.image_size == (384, 384)
  assert (config.optim.name, config.optim.options['momentum'], config.optim.clip_norm) == ('sgd', 0.9, 1.0)
  assert config.optim.weight_decay == 0.0 and config.objective.loss == 'softmax' and config.transfer.reset_head
  params = jax.eval_shape(parts.create).params
  assert 'pre_logits' not in params and params['position']['grid'].shape == (24, 24, 768)


# Paper, table 3: model, data, epochs, base learning rate, decay, weight decay, dropout.
TABLE_3 = [
    ('b16', 'jft', 7, 8e-4, 'linear', 0.1, 0.0), ('b32', 'jft', 7, 8e-4, 'linear', 0.1, 0.0),
    ('l32', 'jft', 7, 6e-4, 'linear', 0.1, 0.0), ('l16', 'jft', 14, 4e-4, 'linear', 0.1, 0.0),
    ('h14', 'jft', 14, 3e-4, 'linear', 0.1, 0.0), ('r50_b16', 'jft', 7, 8e-4, 'linear', 0.1, 0.0),
    ('r50_l32', 'jft', 7, 2e-4, 'linear', 0.1, 0.0),
    ('b16', 'imagenet21k', 90, 1e-3, 'linear', 0.03, 0.1), ('b32', 'imagenet21k', 90, 1e-3, 'linear', 0.03, 0.1),
    ('l16', 'imagenet21k', 90, 1e-3, 'linear', 0.03, 0.1), ('l32', 'imagenet21k', 90, 1e-3, 'linear', 0.03, 0.1),
    ('b16', 'imagenet', 300, 3e-3, 'cosine', 0.3, 0.1), ('l32', 'imagenet', 300, 3e-3, 'cosine', 0.3, 0.1),
    ('h14', 'imagenet', 300, 3e-3, 'cosine', 0.3, 0.1),
]


@pytest.mark.parametrize('model, data, epochs, rate, decay, weight_decay, dropout', TABLE_3)
def test_table_3(model, data, epochs, rate, decay, weight_decay, dropout, no_data):
  parts = build(recipe('vit', f'{model},{data}'))
  config, steps = parts.config, parts.num_steps
  assert config.data.batch_size == 4096 and parts.data.image_size == (224, 224)
  assert steps == pytest.approx(epochs * len(parts.data.source) / 4096, abs=1)
  assert (config.optim.schedule, config.optim.weight_decay, config.model.dropout) == (decay, weight_decay, dropout)
  assert float(parts.optimizer.schedule(10_000)) == pytest.approx(rate)
  assert float(parts.optimizer.schedule(5_000)) == pytest.approx(rate / 2)
  assert float(parts.optimizer.schedule(steps)) == pytest.approx(1e-5 if decay == 'linear' else 0.0, abs=1e-9)
  assert config.optim.name == 'adamw' and config.optim.options == dict(b1=0.9, b2=0.999, mu_dtype='bfloat16')
  assert config.optim.clip_norm == 1.0 and config.optim.decay_mask == '.*'


# AugReg, section 3.3: name, RandAugment's layers and magnitude, mixup's α.
AUGREG = [('none', 0, 0, 0.0), ('light1', 2, 0, 0.0), ('light2', 2, 10, 0.2), ('medium1', 2, 15, 0.2),
          ('medium2', 2, 15, 0.5), ('strong1', 2, 20, 0.5), ('strong2', 2, 20, 0.8)]


@pytest.mark.parametrize('preset, layers, magnitude, alpha', AUGREG)
def test_augreg_presets(preset, layers, magnitude, alpha):
  assert len(AUGREG) == len(common.AUGREG)
  config = recipe('augreg', f's16,imagenet,{preset}')
  operations = [part.strip() for part in config.data.train_transform.split('|')]
  assert operations == ['inception_crop', 'flip'] + ([f'randaugment({layers}, {magnitude})'] if layers else [])
  assert config.mix.mixup == alpha


# AugReg, sections 3.4 and 3.5; big_vision's vit_i1k.py and vit_i21k.py: data, loss, head bias, hidden layer of the
# head.
@pytest.mark.parametrize('data, classes, bias, hidden', [('imagenet', 1000, -6.9, True), ('imagenet21k', 21_843, -10.0, False)])
def test_augreg(data, classes, bias, hidden, no_data):
  parts = build(recipe('augreg', f'b16,{data}'))
  config, params = parts.config, jax.eval_shape(parts.create).params
  assert (config.objective.loss, config.model.head_bias) == ('sigmoid', bias)
  assert params['head']['bias'].shape == (classes,) and ('pre_logits' in params) == hidden
  assert parts.num_steps == pytest.approx(300 * len(parts.data.source) / 4096, abs=1)
  assert float(parts.optimizer.schedule(10_000)) == pytest.approx(1e-3) and float(parts.optimizer.schedule(5_000)) == pytest.approx(5e-4)
  assert float(parts.optimizer.schedule(parts.num_steps)) == pytest.approx(0.0, abs=1e-9)
  assert config.optim.weight_decay in (0.1, 0.03) and config.optim.clip_norm == 1.0


@pytest.mark.parametrize('argument, bias', [('b16,imagenet', -6.9), ('l16,imagenet21k', -10.0)])
def test_mixer(argument, bias, no_data):
  """big_vision's mlp_mixer_i1k.py."""
  parts = build(recipe('mixer', argument))
  config = parts.config
  assert config.data.train_transform == 'inception_crop|flip|randaugment(2, 15)'
  assert (config.mix.mixup, config.model.head_bias, config.model.stochastic_depth) == (0.5, bias, 0.1)
  assert (config.data.batch_size, config.objective.loss, config.optim.clip_norm) == (4096, 'sigmoid', 1.0)
  assert parts.num_steps == pytest.approx(300 * len(parts.data.source) / 4096, abs=1)
  assert float(parts.optimizer.schedule(10_000)) == pytest.approx(1e-3) and float(parts.optimizer.schedule(5_000)) == pytest.approx(5e-4)
  assert float(parts.optimizer.schedule(parts.num_steps)) == pytest.approx(1e-5)
  assert argument != 'b16,imagenet' or parts.num_params == 59_880_472


@pytest.mark.parametrize('task, steps, drops, mixup, size', [
    ('pets', 500, (200, 300, 400), None, 480), ('cifar10', 10_000, (3_000, 6_000, 9_000), 0.1, 128),
    ('imagenet', 20_000, (6_000, 12_000, 18_000), 0.1, 480)])
def test_hyperrule(task, steps, drops, mixup, size, no_data):
  """arXiv 1912.11370, section 3.3; big_transfer's bit_hyperrule.py."""
  parts = build(recipe('bit', f'r50x1,hyperrule,{task}'))
  config = parts.config
  assert parts.num_steps == steps and parts.data.image_size == (size, size) and config.mix.mixup == mixup
  assert (config.data.batch_size, config.optim.name, config.optim.clip_norm) == (512, 'sgd', None)
  warmup = 100 if steps == 500 else 500
  assert float(parts.optimizer.schedule(warmup // 2)) == pytest.approx(0.0015)
  for step, before in [(warmup, 0.003), *zip(drops, (0.0003, 0.00003, 0.000003), strict=True)]:
    assert float(parts.optimizer.schedule(step)) == pytest.approx(before)
    assert float(parts.optimizer.schedule(step - 1)) > before or step == warmup


@pytest.mark.parametrize('argument, rate, loss, epochs', [
    ('r50x1,imagenet', 1.6, 'softmax', 90), ('r101x3,imagenet21k', 0.48, 'sigmoid', 90),
    ('r50x2,jft', 1e-3, 'sigmoid', 7), ('r152x2,jft', 6e-4, 'sigmoid', 7)])
def test_bit(argument, rate, loss, epochs, no_data):
  """big_vision's bit_i1k.py and bit_i21k.py; ViT paper, table 3."""
  parts = build(recipe('bit', argument))
  config = parts.config
  assert (config.optim.peak_lr, config.objective.loss, config.data.batch_size) == (rate, loss, 4096)
  assert parts.num_steps == pytest.approx(epochs * len(parts.data.source) / 4096, abs=1)
  assert argument != 'r50x1,imagenet' or parts.num_params == 25_549_352


def test_better_plain_vit(no_data):
  """arXiv 2205.01580, section 2; big_vision's vit_s16_i1k.py."""
  parts = build(recipe('vit_s16_i1k'))
  config, state = parts.config, jax.eval_shape(parts.create)
  assert config.data.batch_size == 1024 and config.data.train_split == 'train[:99%]' and parts.data.image_size == (224, 224)
  assert parts.num_steps == pytest.approx(90 * 1_268_355 / 1024, abs=1)
  assert config.data.train_transform.replace(' ', '') == 'inception_crop|flip|randaugment(2,10)'
  assert config.data.eval_transform == 'resize_small(256)|central_crop' and config.mix.mixup == 0.2
  assert config.objective.loss == 'softmax' and config.objective.label_smoothing == 0.0
  assert float(parts.optimizer.schedule(10_000)) == pytest.approx(1e-3) and float(parts.optimizer.schedule(2_500)) == pytest.approx(2.5e-4)
  # S/16, mean of the tokens, fixed positions, a hidden tanh layer before the head.
  assert 'position' not in state.params and 'token' not in state.params
  assert state.params['pre_logits']['kernel'].shape == (384, 384)
  block = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
  assert parts.num_params == 12 * block + (16 * 16 * 3 + 1) * 384 + 2 * 384 + (384 + 1) * 384 + (384 + 1) * 1000
  dtypes = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim > 0}
  assert dtypes == {'bfloat16', 'float32'}  # first moments, second moments
  assert (config.model.dropout, config.model.stochastic_depth) == (0.0, 0.0)


@pytest.mark.parametrize('data', common.DATASETS)
def test_loss_head_bias_and_split_of_pre_training(data, no_data):
  parts = build(recipe('vit', f'b16,{data}'))
  assert parts.config.objective.loss == 'sigmoid'
  assert parts.config.objective.label_smoothing == (0.0 if data == 'jft' else 1e-4)
  assert parts.config.data.train_transform == 'inception_crop|flip'
  params = jax.eval_shape(parts.create).params
  assert params['pre_logits']['kernel'].shape == (768, 768)
  assert params['head']['bias'].shape == (parts.data.source.num_classes,)
  assert parts.config.model.head_bias == -10.0
  assert parts.config.data.train_split not in {keys.split for keys in parts.config.evaluators.values()}


def test_unknown_model_or_data_set_lists_the_choices():
  with pytest.raises(ValueError, match="unknown 'x99'; choose from .*'b16'"):
    recipe('vit', 'x99,imagenet')
  with pytest.raises(ValueError, match="unknown 'imagenette'; choose from .*'imagenet21k'"):
    recipe('vit', 'b16,imagenette')
  with pytest.raises(ValueError, match="unknown 'cifar11'; choose from .*'cifar10'"):
    recipe('finetune', 'b16,cifar11')


SECTIONS = [field.type for field in dataclasses.fields(config_lib.RunConfig) if dataclasses.is_dataclass(field.type)]
KINDS = [*MODELS.values(), *OBJECTIVES.values(), *EVALUATORS.values()]


@pytest.mark.parametrize('section', [*SECTIONS, *(kind.Config for kind in KINDS)], ids=lambda section: section.__name__)
def test_every_key_is_read(section):
  """A field that no code but its own dataclass names would be a key that nothing reads."""
  text = '\n'.join(path.read_text() for path in CONFIGS.parent.glob('vit_jax/**/*.py'))
  unread = [field.name for field in dataclasses.fields(section) if not re.search(rf'\.{field.name}\b', text)]
  assert not unread

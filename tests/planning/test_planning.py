"""What the planner computes beside the compiler: chips, arithmetic, sizes, advice, search; and plans for real."""
import collections
import dataclasses
import importlib.util
import json
import math

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from vit_jax.configs import finetune
from vit_jax.configs import vit
from experiments.benchmarks import plan_table
from tests import tiny
from vit_jax.run import config as config_lib
from vit_jax.base import memory
from vit_jax.run import build as parts
from vit_jax import plan
from vit_jax import train
from vit_jax.data.loading import loader
from vit_jax.data.loading.batch import batch_shapes
from vit_jax.data.sources import registry as sources
from vit_jax.data.sources.info import DatasetInfo, KNOWN_DATASETS
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.planning import chips
from vit_jax.planning import cost
from vit_jax.planning import estimate
from vit_jax.planning import report
from vit_jax.planning import search

RESOURCE_EXHAUSTED = ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
                      '(16.00G) exceeds available HBM (15.75G).')
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='the TPU compiler is not installed')


@pytest.mark.parametrize('name, chip, shape', [
    ('v5e:2x4', 'v5e', (2, 4)), ('v4:2x2x1', 'v4', (2, 2, 1)), ('v6e:32x32', 'v6e', (32, 32)),
    ('v5litepod-256', 'v5e', (16, 16)), ('v5e-8', 'v5e', (2, 4)), ('v6e-4', 'v6e', (2, 2)),
    # Cloud counts the TensorCores of these, two a chip.
    ('v4-8', 'v4', (2, 2, 1)), ('v5p-128', 'v5p', (4, 4, 4))])
def test_topologies(name, chip, shape):
  found, numbers = chips.parse(name)
  assert (found.name, numbers) == (chip, shape)


@pytest.mark.parametrize('name, message', [
    ('v5e', 'expected a topology such as'), ('v5e:16', 'expected a topology such as'),
    ('v9:2x2', "unknown TPU 'v9'; choose from"), ('v5e:1x1', '4 to 1024 chips'), ('v5e:64x64', '4 to 1024 chips'),
    ('v4:2x4', 'expected 3 numbers .* v4:2x2x1'), ('v5litepod-7', 'unknown size of a v5e slice 7; choose from')])
def test_bad_topologies(name, message):
  with pytest.raises(ValueError, match=message):
    chips.parse(name)


def test_without_the_compiler_the_command_that_installs_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
    chips.tpu_slice('v5e:2x4')


# Multiply-add units of a chip: matrix units × rows × columns; two operations each a cycle.
@pytest.mark.parametrize('chip, units', [
    ('v4', 8 * 128**2), ('v5e', 4 * 128**2), ('v5p', 8 * 128**2), ('v6e', 4 * 256**2)])
def test_the_clock_is_that_of_the_peak(chip, units):
  assert chips.CHIPS[chip].clock * 2 * units == pytest.approx(chips.CHIPS[chip].peak, rel=2e-3)


def test_usual_slices_have_their_number_of_chips():
  assert all(math.prod(shape) == count for shapes in chips.SHAPES.values() for count, shape in shapes.items())


def products(jaxpr):
  """Multiply-adds of all matrix products of a jaxpr, loops counted as often as they turn."""
  total = 0
  for line in jaxpr.eqns:
    if line.primitive.name == 'dot_general':
      (contracted, _), _ = line.params['dimension_numbers']
      total += line.outvars[0].aval.size * math.prod(line.invars[0].aval.shape[axis] for axis in contracted)
    elif line.primitive.name == 'conv_general_dilated':
      kernel = line.invars[1].aval
      total += line.outvars[0].aval.size * kernel.size // line.outvars[0].aval.shape[-1]
    for inner in jax.core.jaxprs_in_params(line.params):
      total += line.params.get('length', 1) * products(inner)
  return total


@pytest.mark.parametrize('fields', [
    dict(), dict(pool='gap', registers=3), dict(pool='map', image_size=(8, 24)),
    dict(representation_size=5, patch_size=2),
    dict(pool='gap', class_token=True, num_classes=None)], ids=str)
def test_multiply_adds_are_those_of_the_forward_pass(fields):
  shape = dict(width=16, depth=3, heads=2, mlp_dim=24, patch_size=4, image_size=16, num_classes=7, channels=1)
  model = nnx.eval_shape(lambda: VisionTransformer(ViTConfig(**{**shape, **fields}), rngs=nnx.Rngs(0)))
  graphdef, params = nnx.split(model, nnx.Param)
  images = jax.ShapeDtypeStruct((1, *model.image_size, 1), jnp.float32)

  def classify(params, images):
    model = nnx.merge(graphdef, params)
    model.pool.first_only = False  # else the last block leaves out the tokens that nobody reads, which the model has all the same
    return model(images)

  jaxpr = jax.make_jaxpr(classify)(params, images)
  assert model.multiply_adds() == products(jaxpr.jaxpr)


def test_the_shapes_of_a_batch_are_those_of_the_batches(data_dir):
  source = sources.open_source('digits', 'train[:20]', str(data_dir))
  batch = next(iter(loader.train_batches(source, batch_size=4, image_size=(8, 8), threads=0)))
  assert source.info == DatasetInfo(20, 10, 1)
  assert batch_shapes(source.info, batch_size=4, image_size=(8, 8)) == {
      name: (array.shape, array.dtype) for name, array in batch.items()}
  many = dataclasses.replace(source.info, multi_label=True)
  assert batch_shapes(many, batch_size=4, image_size=(8, 8))['label'][0] == (4, 10)


@pytest.mark.parametrize('text, needed, there', [
    (RESOURCE_EXHAUSTED, 16 << 30, 15.75 * 2**30),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.', 17.5 * 2**30,
     15.75 * 2**30),
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes.', 12 << 30, None),
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB.', 2.5 * 2**30, None),
    ('RESOURCE_EXHAUSTED: no figure', None, None)])
def test_figures_of_out_of_memory(text, needed, there):
  assert memory.figures(text) == (needed, there)


def test_advice_names_only_knobs_that_help(data_dir):
  plain = memory.advice(config_lib.resolve(tiny.config(data_dir)).to_dict())
  turned = {'model.dtype': 'bfloat16', 'train.ema_decay': None, 'optim.options': {'mu_dtype': 'bfloat16'}}
  turned = memory.advice(config_lib.resolve(tiny.config(data_dir, **turned)).to_dict())
  gone = {'--config.model.dtype=bfloat16', '--config.optim.options.mu_dtype=bfloat16', '--config.train.ema_decay=None'}
  missing = set(plain) - set(turned)
  assert len(missing) == 3 and all(any(line.startswith(start) for line in missing) for start in gone)
  assert any('data.batch_size' in line for line in turned)


@pytest.mark.parametrize('remat, next_step', [('none', ['full']), ('dots', ['full']), ('full', ['offload']), ('offload', [])])
def test_advice_on_rematerialisation_is_a_ladder(remat, next_step, data_dir):
  lines = memory.advice(config_lib.resolve(tiny.config(data_dir, **{'model.remat': remat})).to_dict())
  assert [line.split()[0].partition('remat=')[2] for line in lines if 'model.remat' in line] == next_step


def test_out_of_memory_in_a_run_says_what_helps(data_dir, tmp_path, monkeypatch):
  def exhausted(*args):
    raise jax.errors.JaxRuntimeError(RESOURCE_EXHAUSTED)

  monkeypatch.setattr(train, '_loop', exhausted)
  with pytest.raises(ValueError, match=r'17.18 GB asked for, 16.91 GB there(.|\n)*--config.model.dtype=bfloat16'):
    train.run(tiny.config(data_dir), tmp_path)


def test_other_errors_of_the_runtime_stay_what_they_are():
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.explained({}):
    raise jax.errors.JaxRuntimeError('INTERNAL: a defect')


@pytest.fixture
def machine(monkeypatch):
  """A machine whose memory, in images, is given by settings; counts the compilations."""
  calls = []

  def fake(config, facts, tpu, say):
    images = config.data.batch_size // jax.device_count()
    calls.append(images)
    room = {'float32': 40, 'bfloat16': 100}[config.model.dtype]
    return dict(fits=images <= room, needed_gb=1.0 + images, hbm_gb=1.0 + room, parameters_gb=0.5, optimizer_gb=0.5,
                average_gb=0.0, code_gb=0.0, batch_per_device=images, temp_gb=float(images), images_per_second=None,
                spare_gb=float(room - images))

  monkeypatch.setattr(search, 'estimate', fake)
  monkeypatch.setattr(search, 'device_memory', lambda tpu: 1)
  monkeypatch.setattr(search, 'SETTINGS', {'model.dtype': ('float32', 'bfloat16'), 'model.no_such_key': (1, 2)})
  return calls


def test_search_finds_the_largest_power_of_two_for_each_setting(machine, data_dir):
  found = search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1))
  assert [(row['settings'], row['batch_per_device']) for row in found['search']] == [
      ({'model.dtype': 'float32'}, 32), ({'model.dtype': 'bfloat16'}, 64)]
  assert found['batch_per_device'] == 64 and found['settings'] == {'model.dtype': 'bfloat16'}
  assert machine == [8, 32, 64, 8, 64, 128]  # the first tells where the end is, the last proves it


def test_search_goes_down_to_one_image_and_gives_up(machine, data_dir, monkeypatch):
  fake = search.estimate
  monkeypatch.setattr(search, 'estimate', lambda *args: dict(fake(*args), fits=machine[-1] <= 1))
  assert search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1))['batch_per_device'] == 1
  monkeypatch.setattr(search, 'estimate', lambda *args: dict(fake(*args), fits=False))
  with pytest.raises(ValueError, match='not even one image a device fits'):
    search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1))


def test_search_ends_where_memory_does_not(machine, data_dir, monkeypatch):
  fake = search.estimate
  monkeypatch.setattr(search, 'estimate', lambda *args: dict(fake(*args), fits=True, needed_gb=1.0 + 1e-6))
  assert search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1))['batch_per_device'] == 4096


def test_search_survives_a_program_smaller_than_its_parts(machine, data_dir, monkeypatch):
  fake, said = search.estimate, []
  monkeypatch.setattr(search, 'estimate', lambda *args: dict(fake(*args), needed_gb=0.5))
  assert search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1), say=said.append)['batch_per_device'] == 64
  assert [line for line in said if 'combination' in line] == [
      "combination 1 of 2: {'model.dtype': 'float32'}", "combination 2 of 2: {'model.dtype': 'bfloat16'}"]


def test_search_needs_a_limit_of_memory(data_dir):
  with pytest.raises(ValueError, match='give a --topology'):
    search.search(tiny.config(data_dir), DatasetInfo(1000, 10, 1))


@pytest.fixture(scope='module')
def here(data_dir):
  """A plan for the devices of the tests."""
  return plan.plan(tiny.config(data_dir))


def test_sizes_are_those_of_the_parts(here, data_dir):
  program = train.build(tiny.config(data_dir))
  size = 4e-9 * program.num_params
  assert here['parameters'] == program.num_params and here['parameters_gb'] == pytest.approx(size)
  assert here['average_gb'] == pytest.approx(size)
  assert here['optimizer_gb'] == pytest.approx(2 * size, abs=1e-7)  # two moments, and counters
  assert here['batch_gb'] == pytest.approx(64e-9 * (8 * 8 * 1 + 4 + 4 + 4))
  known = sum(here[name] for name in ('parameters_gb', 'optimizer_gb', 'average_gb', 'batch_gb'))
  assert here['argument_gb'] == pytest.approx(known, abs=1e-7)
  assert here['needed_gb'] == pytest.approx(known + here['other_gb'] + here['temp_gb'] + here['code_gb'])
  assert here['temp_gb'] > 0 and here['fits'] is None and here['cycles'] is None


def test_a_plan_is_json_and_text(here):
  assert json.loads(json.dumps(here)) == here
  text = report.text(here)
  assert f'{here["parameters"]:,} parameters' in text and 'no limit known' in text
  assert 'pmap:' in text and '64 a device, in 1 micro-batch(es); float32, remat none, scanned' in text
  assert here['collectives'] == {} and 'collectives a step' not in text  # there is nobody to talk to


def test_devices_that_share_images_are_counted_once(data_dir):
  """Two of tensor: each holds all images of its share, and does half of the work."""
  parallel = dict(strategy='mesh', data=1, fsdp=1, tensor=2)
  config = config_lib.resolve(tiny.config(data_dir, **{'parallel': parallel, 'train.micro_batch': 16}))
  strategy = parts.make_strategy(config, [jax.devices()[0]] * 2)
  program = parts.build_program(config, strategy, DatasetInfo(300, 10, 1))
  found = estimate._described(program, None, 2)
  assert (found['batch_size'], found['batch_per_device'], found['accumulate']) == (64, 64, 4)
  assert found['strategy'] == 'mesh of data 1 × fsdp 1 × tensor 2'
  chip = chips.CHIPS['v5e']
  spent = cost.Cost(operations=collections.Counter({('here', 'matmul'): int(chip.clock)}))  # one second
  assert estimate._speed(spent, found, chip, 2)['images_per_second'] == 32


def test_a_table_of_plans(here, tmp_path):
  missing = dict(here, fits=False, hbm_gb=16.91, temp_gb=None)
  plan_table.write([here, missing], tmp_path / 'new' / 'plan.md', 'A title', 'a command')
  title, *_, header, line, first, second = (tmp_path / 'new' / 'plan.md').read_text().splitlines()
  assert title == '# A title' and len({row.count('|') for row in (header, line, first, second)}) == 1
  assert '16.91, does not fit' in second and 'does not fit' not in first


def test_a_plan_that_does_not_fit_says_how_much_is_missing_and_what_helps(data_dir, monkeypatch):
  error = jax.errors.JaxRuntimeError(RESOURCE_EXHAUSTED)
  monkeypatch.setattr(estimate, '_compile', lambda *args: (None, 1.0, error))
  found = plan.plan(tiny.config(data_dir))
  assert found['fits'] is False and (found['needed_gb'], found['hbm_gb']) == (17.179869184, 16.911433728)
  text = report.text(found)
  assert 'DOES NOT FIT, 17.18 GB needed, 16.91 GB there' in text and '--config.model.dtype=bfloat16' in text


def test_known_data_need_not_be_here(data_dir, monkeypatch):
  monkeypatch.setattr(estimate, 'estimate', lambda config, facts, tpu, say: facts)
  assert plan.plan(vit.get_config('b16,imagenet21k')) == KNOWN_DATASETS['imagenet21k']
  assert plan.plan(vit.get_config('b16,imagenet21k'), num_classes=7) == dataclasses.replace(
      KNOWN_DATASETS['imagenet21k'], num_classes=7)
  assert plan.plan(tiny.config(data_dir)) == DatasetInfo(300, 10, 1)
  assert plan.plan(finetune.get_config('b16,cifar10')) == KNOWN_DATASETS['cifar10']  # its weights are not named


def test_command_prints_one_object_and_nothing_else(data_dir, tmp_path):
  process = tiny.command('plan', f'--config={tiny.write(tiny.config(data_dir), tmp_path)}', '--json', devices=2)
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  found = json.loads(output)
  assert output.count('\n') == 1 and {'cycles', 'temp_gb', 'fits'} <= found.keys()
  assert found['devices'] == 2 and found['batch_per_device'] == 32
  # Two devices sum gradients, the loss, the accuracy and the examples' hash; the class token and its position have one
  # gradient, which XLA sums once.
  assert found['collectives']['all-reduce']['gb'] == pytest.approx(4e-9 * (found['parameters'] - 16 + 3), rel=1e-9)


@needs_libtpu
def test_command_plans_for_a_tpu_that_is_not_there(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  process = tiny.command('plan', f'--config={recipe}', '--json', '--topology=v5e:2x2')
  output, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  found = json.loads(output)
  assert found['fits'] and found['devices'] == 4 and found['cycles'] > 1000
  assert 0 < found['utilisation'] < 1 and not found['notes'] and not found['kernels']
  assert sum(found['kinds'].values()) == found['cycles']

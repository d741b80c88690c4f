"""Plans: sizes against closed forms, JSON and text, the command, and the TPU compiler if it is installed."""
import collections
import dataclasses
import importlib.util
import json

import jax
import pytest

from experiments.benchmarks import plan_table
from tests import tiny
from tests.base.test_memory import RESOURCE_EXHAUSTED
from vit_jax import train
from vit_jax.configs import finetune, vit
from vit_jax.data.sources.info import KNOWN_DATASETS, DatasetInfo
from vit_jax.planning import chips, cost, estimate, planner, report
from vit_jax.run import build
from vit_jax.run import config as config_lib

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='the TPU compiler is not installed')

# What --json has printed since version 0.1.
JSON_KEYS = (
    'device topology devices strategy model dtype remat unroll parameters batch_size batch_per_device accumulate '
    'multiply_adds versions parameters_gb optimizer_gb average_gb batch_gb compile_seconds fits needed_gb hbm_gb spare_gb '
    'argument_gb temp_gb code_gb other_gb cycles milliseconds images_per_second utilisation collectives '
    'collective_milliseconds kinds kernels notes operations advice').split()


@pytest.fixture(scope='module')
def plan(data_dir):
  """The plan of a tiny recipe for the devices of the tests."""
  return planner.plan(tiny.config(data_dir))


def test_sizes_are_those_of_state_and_batch(plan, data_dir):
  program, memory = train.build(tiny.config(data_dir)), plan.memory
  size = 4 * program.num_params
  assert plan.setup.parameters == program.num_params
  assert memory.parameters == memory.ema == size
  assert 2 * size <= memory.optimizer <= 2 * size + 100  # two moments, and counters
  assert memory.batch == 64 * (8 * 8 * 1 + 4 + 4 + 4)
  known = memory.parameters + memory.optimizer + memory.ema + memory.batch
  assert known <= memory.arguments <= known + 100
  assert memory.needed == known + memory.other + memory.temporaries + memory.code
  assert memory.temporaries > 0 and memory.fits is None and plan.time.cycles is None


def test_a_plan_is_json_and_text(plan):
  values = plan.to_json()
  assert json.loads(json.dumps(values)) == values and list(values) == JSON_KEYS
  assert values['parameters_gb'] == 4e-9 * plan.setup.parameters and values['remat'] == 'none'
  text = report.text(plan)
  assert f'{plan.setup.parameters:,} parameters' in text and 'no limit known' in text
  assert 'pmap:' in text and '64 per device, in 1 micro-batch(es); float32, remat none, scanned' in text
  assert not plan.collectives.kinds and 'collectives per step' not in text  # a single device


def test_devices_that_share_images_are_counted_once(data_dir):
  """With tensor=2, each device holds all images of its shard, and does half of the work."""
  parallel = dict(strategy='mesh', data=1, fsdp=1, tensor=2)
  config = config_lib.read(tiny.config(data_dir, **{'parallel': parallel, 'train.micro_batch': 16}))
  strategy = build.make_strategy(config, [jax.devices()[0]] * 2)
  setup = estimate._setup(build.build_program(config, strategy, DatasetInfo(300, 10, 1)), None, 2)
  assert (setup.batch_size, setup.batch_per_device, setup.num_micro_batches) == (64, 64, 4)
  assert setup.strategy == 'mesh of data 1 × fsdp 1 × tensor 2'
  chip = chips.CHIPS['v5e']
  one_second = cost.Cost(operations=collections.Counter({('here', 'matmul'): int(chip.clock)}))
  assert estimate._time(one_second, setup, chip).images_per_second == 32


def test_a_table_of_plans(plan, tmp_path):
  memory = dataclasses.replace(plan.memory, fits=False, available=16.91e9, temporaries=None)
  too_large = dataclasses.replace(plan, memory=memory)
  plan_table.write([plan, too_large], tmp_path / 'new' / 'plan.md', 'A title', 'a command')
  title, *_, header, line, first, second = (tmp_path / 'new' / 'plan.md').read_text().splitlines()
  assert title == '# A title' and len({row.count('|') for row in (header, line, first, second)}) == 1
  assert '16.91, does not fit' in second and 'does not fit' not in first


def test_a_plan_that_does_not_fit_has_the_sizes_and_advice(data_dir, monkeypatch):
  error = jax.errors.JaxRuntimeError(RESOURCE_EXHAUSTED)
  monkeypatch.setattr(estimate, '_compile', lambda *args: (None, 1.0, error))
  plan = planner.plan(tiny.config(data_dir))
  values = plan.to_json()
  assert values['fits'] is False and (values['needed_gb'], values['hbm_gb']) == (17.179869184, 16.911433728)
  assert values['notes'] == [RESOURCE_EXHAUSTED] and list(values) == JSON_KEYS
  text = report.text(plan)
  assert 'DOES NOT FIT, 17.18 GB needed, 16.91 GB available' in text and '--config.model.dtype=bfloat16' in text


def test_known_datasets_are_not_opened(data_dir):
  info = lambda recipe, num_classes=None: planner.dataset_info(config_lib.read(recipe), num_classes)
  imagenet = vit.get_config('b16,imagenet21k')
  assert info(imagenet) == KNOWN_DATASETS['imagenet21k']
  assert info(imagenet, 7) == dataclasses.replace(KNOWN_DATASETS['imagenet21k'], num_classes=7)
  assert info(tiny.config(data_dir)) == DatasetInfo(300, 10, 1)


def test_utilization_is_left_out_where_a_step_is_not_one_pass_over_each_image(data_dir):
  found = estimate._setup(build.build(tiny.config(data_dir, objective=dict(kind='simmim', unit=1), evaluators={})), None, 1)
  assert found.multiply_adds is None
  assert estimate._setup(build.build(tiny.config(data_dir)), None, 1).multiply_adds


def test_a_fine_tune_is_planned_before_its_weights_are_given(monkeypatch):
  monkeypatch.setattr(estimate, 'estimate', lambda config, info, tpu, log: (config.init, info))
  assert planner.plan(finetune.get_config('b16,cifar10')) == (None, KNOWN_DATASETS['cifar10'])


def test_the_command_prints_one_json_object(data_dir, tmp_path):
  process = tiny.command('plan', f'--config={tiny.write(tiny.config(data_dir), tmp_path)}', '--json', devices=2)
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  found = json.loads(output)
  assert output.count('\n') == 1 and list(found) == JSON_KEYS
  assert found['devices'] == 2 and found['batch_per_device'] == 32
  # Two devices sum gradients, loss, accuracy, the number of examples and their hash; the class token and its position
  # have the same gradient, which XLA sums once.
  assert found['collectives']['all-reduce']['gb'] == pytest.approx(4e-9 * (found['parameters'] - 16 + 4), rel=1e-9)


@needs_libtpu
def test_the_command_plans_for_a_tpu_that_is_not_there(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  process = tiny.command('plan', f'--config={recipe}', '--json', '--topology=v5e:2x2')
  output, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  found = json.loads(output)
  assert found['fits'] and found['devices'] == 4 and found['cycles'] > 1000
  assert 0 < found['utilisation'] < 1 and not found['notes'] and not found['kernels']
  assert sum(found['kinds'].values()) == found['cycles']

"""The search for the largest batch, on a machine whose memory is made up."""
import dataclasses

import jax
import pytest

from tests import tiny
from vit_jax.base.errors import UserError
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.planning import search
from vit_jax.planning.plan import Collectives, Memory, Plan, Setup, Time

INFO = DatasetInfo(1000, 10, 1)
GB = 10**9


def fake_plan(images, room, **memory):
  """Return the plan of a batch that takes 1 GB per image, 1 GB more, and fits if `room` GB are enough for the images."""
  setup = Setup('fake', None, jax.device_count(), 'pmap', None, 'float32', None, False, 1, images, images, 1, 1, {})
  sizes = dict(fits=images <= room, needed=(1 + images) * GB, available=(1 + room) * GB, parameters=GB // 2,
               optimizer=GB // 2, ema=0, batch=0, spare=(room - images) * GB, temporaries=images * GB, code=0)
  return Plan(setup, Memory(**{**sizes, **memory}), Time(), Collectives(), 1.0)


@pytest.fixture
def machine(monkeypatch):
  """The list of batch sizes that are compiled, on a machine with memory for 40 float32 or 100 bfloat16 images."""
  compiled = []

  def estimate(config, info, tpu, log):
    images = config.data.batch_size // jax.device_count()
    compiled.append(images)
    return fake_plan(images, {'float32': 40, 'bfloat16': 100}[config.model.dtype])

  monkeypatch.setattr(search, 'estimate', estimate)
  monkeypatch.setattr(search, 'device_memory', lambda tpu: 1)
  monkeypatch.setattr(search, 'SETTINGS', {'model.dtype': ('float32', 'bfloat16'), 'model.no_such_key': (1, 2)})
  return compiled


@pytest.fixture
def change_memory(machine, monkeypatch):
  """Return a function that changes fields of `Memory` in every plan of the machine."""
  estimate = search.estimate

  def change(**fields):
    def changed(*args):
      plan = estimate(*args)
      values = {name: value() if callable(value) else value for name, value in fields.items()}
      return dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, **values))

    monkeypatch.setattr(search, 'estimate', changed)

  return change


def test_search_finds_the_largest_power_of_two_for_each_setting(machine, data_dir):
  plan = search.search(tiny.config(data_dir), INFO)
  assert [(trial.settings, trial.batch_per_device) for trial in plan.trials] == [
      ({'model.dtype': 'float32'}, 32), ({'model.dtype': 'bfloat16'}, 64)]
  assert plan.setup.batch_per_device == 64 and plan.settings == {'model.dtype': 'bfloat16'}
  assert machine == [8, 32, 64, 8, 64, 128]  # the first predicts the limit, the last proves it


def test_search_goes_down_to_one_image(machine, change_memory, data_dir):
  change_memory(fits=lambda: machine[-1] <= 1)
  assert search.search(tiny.config(data_dir), INFO).setup.batch_per_device == 1


def test_search_fails_if_not_even_one_image_fits(change_memory, data_dir):
  change_memory(fits=False)
  with pytest.raises(UserError, match='--search: not even one image per device fits'):
    search.search(tiny.config(data_dir), INFO)


def test_search_ends_even_if_memory_is_never_full(change_memory, data_dir):
  change_memory(fits=True, needed=GB + 1000)
  assert search.search(tiny.config(data_dir), INFO).setup.batch_per_device == 4096


def test_search_handles_a_program_smaller_than_the_sum_of_its_parts(change_memory, data_dir):
  logged = []
  change_memory(needed=GB // 2)
  assert search.search(tiny.config(data_dir), INFO, log=logged.append).setup.batch_per_device == 64
  assert [line for line in logged if 'combination' in line] == [
      "combination 1 of 2: {'model.dtype': 'float32'}", "combination 2 of 2: {'model.dtype': 'bfloat16'}"]


def test_search_needs_a_memory_limit(data_dir):
  with pytest.raises(UserError, match='--search: .* Give a --topology'):
    search.search(tiny.config(data_dir), INFO)


def test_the_result_of_a_search_is_json_with_one_row_per_combination(machine, data_dir):
  values = search.search(tiny.config(data_dir), INFO).to_json()
  assert values['settings'] == {'model.dtype': 'bfloat16'} and values['batch_per_device'] == 64
  assert values['search'][0] == dict(settings={'model.dtype': 'float32'}, batch_per_device=32, temp_gb=32.0,
                                     spare_gb=8.0, images_per_second=None)

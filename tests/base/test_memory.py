"""Out-of-memory errors: their sizes, and the settings that help."""
import jax
import pytest

from tests import tiny
from vit_jax.base.errors import UserError
from vit_jax.base.machine import memory
from vit_jax.run import config as config_lib

RESOURCE_EXHAUSTED = ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
                      '(16.00G) exceeds available HBM (15.75G).')


def advice(data_dir, **changes):
  return memory.advice(config_lib.read(tiny.config(data_dir, **changes)))


@pytest.mark.parametrize('text, requested, available', [
    (RESOURCE_EXHAUSTED, 16 << 30, 15.75 * 2**30),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.', 17.5 * 2**30,
     15.75 * 2**30),
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes.', 12 << 30, None),
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB.', 2.5 * 2**30, None),
    ('RESOURCE_EXHAUSTED: no figure', None, None)])
def test_sizes_in_out_of_memory_errors(text, requested, available):
  assert memory.parse_sizes(text) == (requested, available)


def test_advice_has_only_settings_that_help(data_dir):
  plain = advice(data_dir)
  changed = advice(data_dir, **{'model.dtype': 'bfloat16', 'train.ema_decay': None,
                                'optim.options': {'mu_dtype': 'bfloat16'}})
  gone = {'--config.model.dtype=bfloat16', '--config.optim.options.mu_dtype=bfloat16', '--config.train.ema_decay=None'}
  missing = set(plain) - set(changed)
  assert len(missing) == 3 and all(any(line.startswith(start) for line in missing) for start in gone)
  assert any('data.batch_size' in line for line in changed)


@pytest.mark.parametrize('remat, next_step', [
    ('none', ['full']), ('dots', ['full']), ('full', ['offload']), ('offload', [])])
def test_advice_on_rematerialization_goes_one_step_further(remat, next_step, data_dir):
  lines = advice(data_dir, **{'model.remat': remat})
  assert [line.split()[0].partition('remat=')[2] for line in lines if 'model.remat' in line] == next_step


def test_out_of_memory_becomes_a_message_with_sizes_and_advice(data_dir):
  config = config_lib.read(tiny.config(data_dir))
  message = r'17.18 GB requested, 16.91 GB available(.|\n)*--config.model.dtype=bfloat16'
  with pytest.raises(UserError, match=message), memory.explain_out_of_memory(config):
    raise jax.errors.JaxRuntimeError(RESOURCE_EXHAUSTED)


def test_other_runtime_errors_are_unchanged(data_dir):
  config = config_lib.read(tiny.config(data_dir))
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.explain_out_of_memory(config):
    raise jax.errors.JaxRuntimeError('INTERNAL: a defect')

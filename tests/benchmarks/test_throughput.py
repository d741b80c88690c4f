"""The throughput benchmark, shrunk, on the devices of the tests; no peer needed."""
import io
import json
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import contender, throughput
from tests import tiny
from vit_jax.base.errors import UserError

SETTING = dict(model='Ti/16', mode='train', batch=2, dtype='float32', image_size=32)
TINY = {'model.depth': 1}


@pytest.mark.parametrize('mode', ['train', 'inference'])
def test_a_contender_describes_itself_then_times_steps(mode):
  answers = io.StringIO()
  contender.serve('vit_jax', ['1', '3'], answers, **dict(SETTING, mode=mode), changes=TINY)
  about, *turns = map(json.loads, answers.getvalue().splitlines())
  assert about['platform'] == 'cpu' and about['first_step_seconds'] > turns[0]['seconds'] > 0.0
  # 4 patches of 768 values, 5 tokens, width 192, MLP 768, 1,000 classes.
  block = 5 * (4 * 192**2 + 2 * 192 * 768) + 2 * 5**2 * 192
  assert about['multiply_adds'] == 4 * 768 * 192 + block + 192 * 1000
  assert len(turns) == 2 and all(turn['peak_memory'] > 1e7 for turn in turns)
  assert (turns[1]['value'] < about['value']) == (mode == 'train')  # the loss on the one batch falls; logits stay the same


@pytest.mark.parametrize('together', [False, True])
def test_libraries_take_turns(together, monkeypatch):
  order = []

  class Fake:
    """Take a step time that depends on the name."""

    def __init__(self, entry, setting):
      self.library, self.seconds = entry.library, dict(vit_jax=0.1, broken=0.1, slow=0.2)[entry.library]
      order.append(f'{self.library} started')

    @property
    def about(self):
      if self.library == 'broken':
        raise ValueError('no such model')
      order.append(f'{self.library} ready')
      return dict(device='NVIDIA A100-SXM4-40GB', multiply_adds=10e9, first_step_seconds=1.0,
                  versions={self.library: '1'})

    def run(self, steps):
      order.append(self.library)
      return dict(seconds=steps * self.seconds, cpu_seconds=steps * 2 * self.seconds, value=0.0, peak_memory=3e9)

    def close(self):
      order.append(f'{self.library} ended')

  monkeypatch.setattr(throughput, 'Contender', Fake)
  setting = dict(SETTING, batch=8, dtype='bfloat16')
  entries, log = {name: throughput.Entry(name) for name in ('vit_jax', 'broken', 'slow')}, []
  ours, theirs = throughput.measure(setting, entries, rounds=3, seconds=1.0, log=log.append,
                                    together=together)
  assert 'broken is left out: no such model' in log
  starts = ['vit_jax started', 'broken started', 'slow started', 'vit_jax ready', 'slow ready']
  assert order[:5] == (starts if together else [starts[0], starts[3], starts[1], starts[2], starts[4]])
  turns = [name for name in order if ' ready' not in name]
  assert turns[-9:] == ['vit_jax', 'slow'] * 3 + ['slow ended', 'broken ended', 'vit_jax ended']
  assert (ours['images_per_second'], ours['spread']) == (80.0, [80.0, 80.0])
  assert (theirs['images_per_second'], theirs['speedup'], theirs['speedup_per_cpu_second']) == (40.0, 2.0, 2.0)
  assert ours['images_per_cpu_second'] == 40.0 and ours['peak_memory_gb'] == 3.0
  assert ours['utilisation'] == round(80 * 6 * 10e9 / 312e12, 4)
  lines = throughput.table([ours, theirs], 'the command')
  assert '    the command' in lines and '2.00 times' in lines[-1] and 'slow 1' in lines[0]
  assert all(line.count('|') == len(throughput.COLUMNS) + 1 for line in lines[-4:])


def test_the_command_prints_json_and_writes_a_table(tmp_path):
  command = [sys.executable, '-m', 'experiments.benchmarks.throughput', '--models=Ti/16', '--batch=2', '--image_size=32', '--json',
             '--mode=inference', '--dtype=float32', '--rounds=2', '--seconds=0.1', '--peers=',
             f'--output={tmp_path / "t.md"}', f'--changes={json.dumps(TINY)}']
  found = subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True).stdout
  row = json.loads(found)
  assert row['library'] == 'vit_jax' and row['batch'] == 2 and row['utilisation'] is None
  low, high = row['spread']
  assert 0.0 < low <= row['images_per_second'] <= high
  assert '| Ti/16 inference | 2 | float32 | vit_jax |' in (tmp_path / 't.md').read_text()


def test_an_error_in_a_contender_has_its_arguments():
  with pytest.raises(ValueError, match="'variant': 'no'|'model': 'no'"):
    throughput.Contender(throughput.Entry('vit_jax'), dict(SETTING, model='no')).run(1)


def test_a_contender_that_misses_its_deadline_is_ended():
  late = throughput.Contender(throughput.Entry('vit_jax'), SETTING)
  late.deadline = time.monotonic() + 0.2
  with pytest.raises(ValueError, match="'model': 'Ti/16'.* missed the deadline"):
    late.run(1)


def test_peers_that_are_not_installed_are_left_out(capsys, monkeypatch):
  monkeypatch.setattr(contender.Timm, 'NEEDS', ('no_such_package',))
  assert throughput.find_peers(['timm'], None) == {}
  assert 'pip install no_such_package' in capsys.readouterr().err
  assert throughput.find_peers(['timm'], '/a/python') == {'timm': throughput.Entry('timm', '/a/python')}
  with pytest.raises(UserError, match="--peers: unknown 'caffe'; choose from \\['timm'\\]"):
    throughput.find_peers(['caffe'], None)

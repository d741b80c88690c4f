"""The throughput experiment, small, on whatever is here; no peer needed."""
import io
import json
import subprocess
import sys

import pytest

from experiments.benchmarks import contender
from experiments.benchmarks import throughput
from tests import tiny
from vit_jax.planning import peaks

SETTING = dict(model='Ti/16', mode='train', batch=2, dtype='float32', image_size=32)
TINY = {'model.depth': 1}


@pytest.mark.parametrize('mode', ['train', 'inference'])
def test_a_contender_says_what_it_is_then_what_steps_take(mode):
  answers = io.StringIO()
  contender.serve('vit_jax', ['1', '3'], answers, **dict(SETTING, mode=mode), changes=TINY)
  about, *turns = map(json.loads, answers.getvalue().splitlines())
  assert about['platform'] == 'cpu' and about['first_step_seconds'] > turns[0]['seconds'] > 0.0
  # 4 patches of 768 values, 5 tokens, width 192, MLP 768, 1,000 classes.
  block = 5 * (4 * 192**2 + 2 * 192 * 768) + 2 * 5**2 * 192
  assert about['multiply_adds'] == 4 * 768 * 192 + block + 192 * 1000
  assert len(turns) == 2 and all(turn['peak_memory'] > 1e7 for turn in turns)
  assert (turns[1]['value'] < about['value']) == (mode == 'train')  # the loss falls on the one batch; logits stay


def test_rounds_are_taken_in_turn(monkeypatch):
  order = []

  class Fake:
    """Takes as long a step as its name says."""

    def __init__(self, python, *, who, **arguments):
      self.who, self.took = who, dict(vit_jax=0.1, slow=0.2)[who]
      self.about = dict(device='NVIDIA A100-SXM4-40GB', multiply_adds=10e9, first_step_seconds=1.0, versions={who: '1'})

    def run(self, steps):
      order.append(self.who)
      return dict(seconds=steps * self.took, cpu_seconds=steps * 2 * self.took, value=0.0, peak_memory=3e9)

    def close(self):
      order.append(f'{self.who} ended')

  monkeypatch.setattr(throughput, 'Contender', Fake)
  setting = dict(SETTING, batch=8, dtype='bfloat16')
  ours, theirs = throughput.measure(setting, {'slow': 'python'}, rounds=3, seconds=1.0, changes={})
  assert order[-8:] == ['vit_jax', 'slow'] * 3 + ['slow ended', 'vit_jax ended']
  assert (ours['images_per_second'], ours['spread']) == (80.0, [80.0, 80.0])
  assert (theirs['images_per_second'], theirs['ours'], theirs['ours_per_cpu_second']) == (40.0, 2.0, 2.0)
  assert ours['images_per_cpu_second'] == 40.0 and ours['peak_memory_gb'] == 3.0
  assert ours['utilisation'] == round(80 * 6 * 10e9 / 312e12, 4)
  lines = throughput.table([ours, theirs], 'the command')
  assert '    the command' in lines and '2.00 times' in lines[-1] and 'slow 1' in lines[0]
  assert all(line.count('|') == len(throughput.COLUMNS) + 1 for line in lines[-4:])


def test_the_command(tmp_path):
  command = [sys.executable, '-m', 'experiments.benchmarks.throughput', '--models=Ti/16', '--batch=2', '--image_size=32', '--json',
             '--mode=inference', '--dtype=float32', '--rounds=2', '--seconds=0.1', '--peers=',
             f'--output={tmp_path / "t.md"}', f'--changes={json.dumps(TINY)}']
  found = subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True).stdout
  row = json.loads(found)
  assert row['who'] == 'vit_jax' and row['batch'] == 2 and row['utilisation'] is None
  low, high = row['spread']
  assert 0.0 < low <= row['images_per_second'] <= high
  assert '| Ti/16 inference | 2 | float32 | vit_jax |' in (tmp_path / 't.md').read_text()


def test_a_contender_that_fails_is_named():
  with pytest.raises(ValueError, match="'variant': 'no'|'model': 'no'"):
    throughput.Contender(sys.executable, who='vit_jax', changes={}, **dict(SETTING, model='no'))


def test_peers_that_are_not_there(capsys, monkeypatch):
  monkeypatch.setattr(contender.Timm, 'NEEDS', ('no_such_package',))
  assert throughput.find_peers(['timm'], None) == {}
  assert 'pip install no_such_package' in capsys.readouterr().err
  assert throughput.find_peers(['timm'], '/a/python') == {'timm': '/a/python'}
  with pytest.raises(ValueError, match="unknown peer 'caffe'; choose from \\['timm'\\]"):
    throughput.find_peers(['caffe'], None)


@pytest.mark.parametrize('kind, value', [
    ('NVIDIA H100 80GB HBM3', 989.5e12), ('NVIDIA H100 PCIe', 756e12), ('NVIDIA H200', 989.5e12),
    ('NVIDIA A100-SXM4-40GB', 312e12), ('NVIDIA A10', 125e12), ('NVIDIA A10G', None), ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12), ('TPU v5 lite', 197e12), ('TPU v5', 459e12), ('TPU v5p', 459e12), ('TPU v6 lite', 918e12),
    ('cpu', None)])
def test_peaks(kind, value):
  assert peaks.peak(kind) == value


def test_peaks_agree_with_the_planner():
  from vit_jax.planning import chips
  for name, chip in chips.CHIPS.items():
    assert peaks.peak(f'TPU {name}') == chip.peak

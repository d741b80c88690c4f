"""Training on an NVIDIA GPU, from the command: mixed precision, cuDNN's attention, a kill, resuming."""
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests import tiny

pytestmark = pytest.mark.skipif(shutil.which('nvidia-smi') is None, reason='needs an NVIDIA GPU')

# Sums by atomic additions would differ from run to run.
ENVIRONMENT = dict(JAX_PLATFORMS='cuda', XLA_FLAGS='--xla_gpu_deterministic_ops=true', JAX_DISABLE_MOST_OPTIMIZATIONS='0',
                   XLA_PYTHON_CLIENT_MEM_FRACTION='0.4')


def start(workdir, *flags, **environment):
  """Start 400 steps of the digits recipe with 16 tokens in bfloat16."""
  command = [sys.executable, '-m', 'vit_jax.main', '--config=configs/digits.py', f'--workdir={workdir}',
             '--config.train.duration=400 steps', '--config.train.log_every=50 steps', '--config.model.patch_size=2',
             '--config.model.dtype=bfloat16', '--config.checkpoint.every=50 steps', *flags]
  return subprocess.Popen(command, cwd=tiny.ROOT, env={**os.environ, **ENVIRONMENT, **environment}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
  """Wait for a run; return its output."""
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return output


def test_a_killed_run_with_cudnn_attention_resumes_exactly_and_learns(tmp_path):
  # Attention dropout is off in the recipe, as cuDNN's kernel has none.
  flags = ['--config.model.attention=cudnn']
  output = finish(start(tmp_path / 'whole', *flags))
  assert 'cuda' in output.lower() or 'nvidia' in output.lower(), output
  killed = start(tmp_path / 'killed', *flags)
  while not (tmp_path / 'killed' / 'checkpoints' / '150').exists() and killed.poll() is None:
    time.sleep(0.05)
  killed.kill()
  killed.communicate()
  assert 'resuming after step' in finish(start(tmp_path / 'killed', *flags))
  whole, resumed = (tiny.metrics(tmp_path / name, ('train/loss', 'train/grad_norm')) for name in ('whole', 'killed'))
  assert resumed == whole
  last = json.loads((tmp_path / 'killed' / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['test/accuracy'] > 0.7  # chance is 0.1; 80 epochs reach 0.9 to 0.97


def test_both_attentions_train_alike(tmp_path):
  finish(start(tmp_path / 'cudnn', '--config.model.attention=cudnn', '--config.model.dropout=0.0'))
  finish(start(tmp_path / 'xla', '--config.model.dropout=0.0'))
  cudnn, xla = (tiny.metrics(tmp_path / name, ('train/loss',)) for name in ('cudnn', 'xla'))
  for (step, ours), (_, theirs) in zip(cudnn, xla, strict=True):
    # Products of bfloat16 are rounded to 3 digits, and differences grow with the steps.
    assert ours == pytest.approx(theirs, rel=0.02 if step <= 50 else 0.3)

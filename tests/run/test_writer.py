"""What a run writes: metrics.jsonl whole across interruptions, TensorBoard events, lines on the terminal."""
import json
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from vit_jax.run.writer import Writer
from vit_jax.rundir.layout import RunDir


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def write(workdir, steps, start=0, value=0.0):
  writer = Writer(RunDir(workdir), 100, start)
  for step in steps:
    writer.write(step, {'train/loss': value + step})
  writer.close()


PROGRESS = {'train/loss': 0.25, 'train/learning_rate': 1e-3, 'train/images_per_second': 1234.0, 'train/input_wait': 0.5}


def test_every_write_is_a_line_of_json(tmp_path):
  writer = Writer(RunDir(tmp_path), 10, 0)
  writer.write(1, {'train/loss': np.float32(0.5), 'train/lr': 1})
  writer.write(1, {'test/accuracy': 1 / 3})
  writer.write(2, {'train/loss': 1e-30})
  # On the disk at once: a kill loses nothing.
  assert lines_of(tmp_path) == [{'step': 1, 'train/loss': 0.5, 'train/lr': 1.0}, {'step': 1, 'test/accuracy': 1 / 3},
                                {'step': 2, 'train/loss': 1e-30}]
  writer.close()


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, range(5, 7), start=4, value=100.0)
  assert [(line['step'], line['train/loss']) for line in lines_of(tmp_path)] == [
      (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 105.0), (6, 106.0)]


def test_a_run_from_the_start_drops_all(tmp_path):
  write(tmp_path, range(1, 4))
  write(tmp_path, [], start=0)
  assert lines_of(tmp_path) == []


def test_all_lines_of_the_resumed_step_stay(tmp_path):
  write(tmp_path, [1, 2, 2, 3])
  write(tmp_path, [], start=2)
  assert [line['step'] for line in lines_of(tmp_path)] == [1, 2, 2]


def test_values_that_are_not_numbers_stay_valid_json(tmp_path):
  writer = Writer(RunDir(tmp_path), 10, 0)
  writer.write(1, {'train/loss': float('nan'), 'train/grad_norm': float('inf')})
  writer.close()
  refuse = lambda name: pytest.fail(f'{name} is not JSON')
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
    assert json.loads(line, parse_constant=refuse)['step'] == 1


@pytest.mark.parametrize('half', ['{"step": 3, "train/lo', '{', '{"step": 3, "train/loss": 3.0}'])
def test_a_half_written_last_line_is_dropped_and_the_rest_survives(tmp_path, half):
  write(tmp_path, [1, 2])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write(half)
  write(tmp_path, [3], start=2, value=10.0)
  assert [(line['step'], line['train/loss']) for line in lines_of(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 13.0)]


def test_nothing_is_left_aside(tmp_path):
  write(tmp_path, [1])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['log.txt', 'metrics.jsonl', 'tensorboard']


def test_tensorboard_gets_the_same_values(tmp_path):
  write(tmp_path, [1, 5])
  data, scalars = b''.join(path.read_bytes() for path in (tmp_path / 'tensorboard').glob('events*')), []
  while data:  # a record is its length, a checksum, an event, a checksum
    length = struct.unpack('<Q', data[:8])[0]
    event, data = event_pb2.Event.FromString(data[12:12 + length]), data[16 + length:]
    scalars += [(event.step, value.simple_value) for value in event.summary.value if value.tag == 'train/loss']
  assert scalars == [(1, 1.0), (5, 5.0)]


def test_progress_is_a_line_without_a_terminal(tmp_path, capsys):
  writer = Writer(RunDir(tmp_path), 100, 0)
  writer.say('hello')
  writer.progress(10, PROGRESS)
  writer.close()
  hello, line = capsys.readouterr().out.splitlines()
  assert hello == 'hello'
  assert line.startswith('step 10/100 ') and ' eta ' in line
  for shown in ('loss 0.2500', '1.00e-03', '1234', '50.0%'):
    assert f'{shown} ' in line


def test_the_remaining_time_follows_from_the_pace_of_this_process(tmp_path, capsys, monkeypatch):
  clock = [1000.0]
  monkeypatch.setattr('vit_jax.run.writer.time.monotonic', lambda: clock[0])
  writer = Writer(RunDir(tmp_path), 100, 49)
  clock[0] += 500  # start-up, compilation and the first step
  writer.progress(50, PROGRESS)
  writer.tick(50)
  clock[0] += 60
  writer.progress(60, PROGRESS)  # 10 steps a minute, 40 to go
  writer.tick(60)
  writer.close()
  first, then = capsys.readouterr().out.splitlines()
  assert first.endswith('eta ?') and then.endswith('eta 04:00')


def test_a_inactive_writer_does_nothing(tmp_path, capsys):
  writer = Writer(RunDir(tmp_path), 100, 0, active=False)
  writer.say('hello')
  writer.write(1, {'train/loss': 1.0})
  writer.progress(1, PROGRESS)
  writer.close()
  assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr() == ('', '')


def test_a_inactive_writer_leaves_the_lines_alone(tmp_path):
  write(tmp_path, [1, 2, 3])
  Writer(RunDir(tmp_path), 100, 1, active=False).close()
  assert [line['step'] for line in lines_of(tmp_path)] == [1, 2, 3]

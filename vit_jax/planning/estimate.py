"""Compiles a training step for a machine and says what it will cost, as plain values."""
import collections
import contextlib
import importlib.metadata
import math
import threading
import time

import jax

from vit_jax.base import memory
from vit_jax.run import build as parts
from vit_jax.base import platform
from vit_jax.data.loading.batch import batch_shapes
from vit_jax.models.vit import pair
from vit_jax.planning import cost as cost_lib
from vit_jax.planning import flops
from vit_jax.planning import hlo

_TOP = 12
_UNKNOWN = ('cycles', 'milliseconds', 'images_per_second', 'utilisation', 'collective_milliseconds', 'temp_gb',
            'spare_gb')


def estimate(config, facts, tpu=None, say=lambda text: None):
  """What one step of a config costs a device.

  Args:
    config: resolved.
    facts: of the training data, see `data.facts`.
    tpu: a `chips.Slice` to compile for; None takes the devices that jax finds and their compiler.
    say: called with lines of progress.

  Returns:
    A dict for JSON, per device; sizes in GB (1e9 bytes), None where the compiler does not say.
      What is planned: `device`, `topology`, `devices`, `strategy` in words, `model`, `dtype`, `remat`, `unroll`, `parameters`,
        `batch_size`, `batch_per_device` (images that a device holds of it: with parallel.tensor=n, n devices hold the
        same), `accumulate` (micro-batches that these are cut into), `multiply_adds` an image, `versions`.
      Memory: `fits`, `needed_gb` of `hbm_gb`, `spare_gb`; `parameters_gb`, `optimizer_gb`, `average_gb`, `batch_gb`, `temp_gb`,
        `code_gb`, `other_gb` (outputs that are not donated, and padding), `argument_gb` (what goes in); `advice`.
      Time: `cycles` without collectives, `milliseconds`, `images_per_second` (of the whole step, by the number of devices),
        `utilisation` (0..1); `kinds` {kind: cycles}, `operations` [{cycles, kind, where}], `kernels` that are not estimated.
      Communication: `collectives` {kind: {count, gb}}, empty on one device; `collective_milliseconds`, which they take at least.
      `notes`; `compile_seconds`, tracing included.

  Raises:
    ValueError: a bad config.
  """
  devices = list(tpu.devices) if tpu else None
  count = len(devices or jax.devices())
  there = device_memory(tpu)
  program = parts.build_program(config, parts.make_strategy(config, devices), facts)
  state, batch = _shapes(program, facts)
  report = dict(_described(program, tpu, count), **_state_sizes(state, batch, count))
  compiled, report['compile_seconds'], error = _compile(program, state, batch, say)
  if error is not None:
    needed, said = memory.figures(error)
    report.update(dict.fromkeys(_UNKNOWN), fits=False, needed_gb=_gb(needed), hbm_gb=_gb(said or there), collectives={},
                  notes=[str(error).splitlines()[0]])
  else:
    report.update(_memory(compiled, report, there))
    report.update(_speed(cost_lib.cost(hlo.parse(compiled.as_text())), report, tpu.chip if tpu else None, count))
  return dict(report, advice=memory.advice(config.to_dict()) if report['fits'] is False else [])


def device_memory(tpu=None):
  """Bytes that a device of a `chips.Slice`, or that jax finds, lets a program have; None without a limit of its own."""
  return tpu.chip.memory if tpu else (jax.devices()[0].memory_stats() or {}).get('bytes_limit')


def _shapes(program, facts):
  """(state, batch): shapes of what the compiled step takes."""
  data = program.config.data
  batch = batch_shapes(facts, batch_size=data.batch_size, image_size=pair(data.to_dict()['image_size']))
  batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch.items()}
  return program.strategy.abstract(jax.eval_shape(program.create)), program.strategy.abstract_batch(batch)


def _described(program, tpu, count):
  """What is planned, and with what."""
  config = program.config.to_dict()
  versions = platform.versions()
  if tpu:
    versions['libtpu'] = importlib.metadata.version('libtpu')
  params = jax.eval_shape(program.create).params
  per_image = flops.multiply_adds(params, pair(config['data']['image_size']))
  return dict(
      device=f'TPU {tpu.chip.name}' if tpu else jax.devices()[0].device_kind, topology=tpu.name if tpu else None,
      devices=count, strategy=str(program.strategy), model=config['model']['variant'],
      **{key: config['model'][key] for key in ('dtype', 'remat', 'unroll')},
      parameters=program.num_params, batch_size=config['data']['batch_size'],
      batch_per_device=config['data']['batch_size'] // program.strategy.shares, accumulate=program.accumulate,
      multiply_adds=per_image, versions=versions)


def _state_sizes(state, batch, count):
  """What a device holds from step to step, and its share of the batch."""
  size = lambda tree: sum(map(_shard_bytes, jax.tree.leaves(tree)))
  # Shapes without a sharding have the devices as the batch's first axis.
  share = sum(_shard_bytes(x) // (count if x.sharding is None else 1) for x in jax.tree.leaves(batch))
  return dict(parameters_gb=_gb(size(state.params)), optimizer_gb=_gb(size(state.opt_state)),
              average_gb=_gb(size(state.ema)), batch_gb=_gb(share))


def _shard_bytes(x):
  shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
  return math.prod(shape) * x.dtype.itemsize


def _compile(program, state, batch, say):
  """(compiled step or None, seconds, the error if memory was not enough)."""
  start = time.monotonic()
  try:
    with _ticking(say):
      lowered = program.strategy.compile(program.step, donate=True).lower(state, batch)
      return lowered.compile(), round(time.monotonic() - start, 1), None
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_exhausted(error):
      raise
    return None, round(time.monotonic() - start, 1), error


@contextlib.contextmanager
def _ticking(say, every=10.0):
  """Says how long it has been, again and again: a compilation tells nothing of its progress."""
  done, start = threading.Event(), time.monotonic()

  def tick():
    while not done.wait(every):
      say(f'compiling for {time.monotonic() - start:.0f} s')

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _memory(compiled, sizes, there):
  """What the executable needs; `there` is what a device has, bytes or None."""
  found = compiled.memory_analysis()
  kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  needed = kept + found.temp_size_in_bytes + found.generated_code_size_in_bytes
  known = sum(sizes[name] for name in ('parameters_gb', 'optimizer_gb', 'average_gb', 'batch_gb'))
  return dict(fits=None if there is None else needed <= there, needed_gb=_gb(needed), hbm_gb=_gb(there),
              spare_gb=_gb(there and there - needed), argument_gb=_gb(found.argument_size_in_bytes),
              temp_gb=_gb(found.temp_size_in_bytes), code_gb=_gb(found.generated_code_size_in_bytes),
              other_gb=round(kept / 1e9 - known, 9))


def _speed(cost, sizes, chip, count):
  """Cycles, where they go, and what they make of the chip."""
  cycles = cost.cycles or None
  seconds = cycles / chip.clock if cycles and chip else None
  kinds = collections.Counter()
  for (_, kind), value in cost.operations.items():
    kinds[kind] += value
  images = sizes['batch_size'] / count  # a chip's part of the work: with tensor=2 two chips hold the same images
  work = 6 * sizes['multiply_adds'] * images
  notes = [f'{cost.kernels} hand-written kernel(s) are not estimated: the cycles are too few'] if cost.kernels else []
  notes += [f'{cost.unread} loop(s) of unknown length are counted once: the cycles are too few'] if cost.unread else []
  notes += ['moving to the host and back what is offloaded is not in the cycles'] if sizes['remat'] == 'offload' else []
  # Sum and share again: a ring's reduce-scatter and all-gather each move nearly all bytes once.
  moved = sum(value * (2 if kind == 'all-reduce' else 1) for kind, value in cost.collective_bytes.items())
  return dict(
      cycles=cycles, milliseconds=seconds and 1e3 * seconds,
      images_per_second=seconds and images / seconds,
      utilisation=seconds and work / (seconds * chip.peak),
      collectives={kind: dict(count=number, gb=_gb(cost.collective_bytes[kind])) for kind, number in
                   sorted(cost.collectives.items()) if count > 1},
      collective_milliseconds=1e3 * moved * (count - 1) / count / chip.link if chip else None,
      kinds=dict(kinds.most_common()), kernels=cost.kernels, notes=notes,
      operations=[dict(cycles=value, kind=kind, where=where)
                  for (where, kind), value in cost.operations.most_common(_TOP)])


def _gb(size):
  return None if size is None else size / 1e9

"""Compile a training step for a machine and estimate what it costs a device."""
import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import importlib.metadata
import math
import threading
import time
from typing import Any

import jax

from vit_jax.base import platform
from vit_jax.base.machine import memory as memory_lib
from vit_jax.data.loading.batch import batch_shapes
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.objectives.classification import Classification
from vit_jax.planning import cost as cost_lib
from vit_jax.planning import hlo
from vit_jax.planning.chips import Chip
from vit_jax.planning.plan import Collective, Collectives, Memory, Operation, Plan, Setup, Time
from vit_jax.planning.topology import Slice
from vit_jax.run import build
from vit_jax.run.config import RunConfig

_NUM_OPERATIONS = 12

Log = Callable[[str], None]


def no_log(text: str) -> None:
  """Print nothing."""
  del text


def estimate(config: RunConfig, info: DatasetInfo, tpu: Slice | None = None, log: Log = no_log) -> Plan:
  """Estimate what one step of a config costs a device.

  Args:
    config: of the run.
    info: numbers of the training data.
    tpu: slice to compile for; None takes the devices that jax finds and their compiler.
    log: called with lines of progress.

  Raises:
    UserError: a bad config.
  """
  devices = list(tpu.devices) if tpu else None
  available = device_memory(tpu)
  program = build.build_program(config, build.make_strategy(config, devices), info)
  state, batch = _abstract_inputs(program, info)
  setup = _setup(program, tpu, len(devices or jax.devices()))
  sizes = _state_sizes(state, batch, setup.devices)
  compiled, seconds, error = _compile(program, state, batch, log)
  if compiled is None:
    needed, reported = memory_lib.parse_sizes(str(error))
    memory = Memory(fits=False, needed=needed, available=reported or available, **sizes)
    return Plan(setup, memory, Time(), Collectives(), seconds, notes=(str(error).splitlines()[0],),
                advice=tuple(memory_lib.advice(config)))
  memory = _memory(compiled, sizes, available)
  cost, chip = cost_lib.cost(hlo.parse(str(compiled.as_text()))), tpu.chip if tpu else None
  return Plan(setup, memory, _time(cost, setup, chip), _collectives(cost, setup.devices, chip), seconds,
              notes=tuple(_notes(cost, setup)), advice=tuple(memory_lib.advice(config)) if memory.fits is False else ())


def device_memory(tpu: Slice | None = None) -> int | None:
  """Return the bytes that a device of a slice, or that jax finds, gives to a program; None if it has no limit."""
  return tpu.chip.memory if tpu else (jax.devices()[0].memory_stats() or {}).get('bytes_limit')


def _abstract_inputs(program: build.Program, info: DatasetInfo) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
  """Return (state, batch): the shapes that the compiled step takes."""
  data = program.config.data
  shapes = batch_shapes(info, batch_size=data.batch_size, image_size=data.image_size)
  batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
  return program.strategy.abstract(program.abstract_state()), program.strategy.abstract_batch(batch)


def _name(model: Any) -> str | None:
  """Return the variant, with the kind unless it is a Vision Transformer."""
  return model.variant if model.kind == 'vit' else f'{model.kind} {model.variant or ""}'.strip()


def _setup(program: build.Program, tpu: Slice | None, num_devices: int) -> Setup:
  config, versions = program.config, platform.versions()
  if tpu:
    versions['libtpu'] = importlib.metadata.version('libtpu')
  return Setup(
      device=f'TPU {tpu.chip.name}' if tpu else jax.devices()[0].device_kind, topology=tpu.name if tpu else None,
      devices=num_devices, strategy=str(program.strategy), model=_name(config.model), dtype=config.model.dtype,
      remat=config.model.remat, unroll=config.model.unroll, parameters=program.num_params,
      batch_size=config.data.batch_size, batch_per_device=config.data.batch_size // program.strategy.num_shards,
      num_micro_batches=program.num_micro_batches, multiply_adds=_multiply_adds(program),
      versions=versions)


def _multiply_adds(program: build.Program) -> int | None:
  """Return those of one forward pass, or None for an objective with more, or less, than a pass over each image."""
  return program.model.multiply_adds() if isinstance(program.objective, Classification) else None


def _state_sizes(state: Any, batch: dict[str, jax.ShapeDtypeStruct], num_devices: int) -> dict[str, int]:
  """Return the bytes that a device holds of the state, and of a batch."""
  size = lambda tree: sum(map(_shard_bytes, jax.tree.leaves(tree)))
  # Shapes without a sharding have the devices as the batch's first axis.
  of_batch = sum(_shard_bytes(x) // (num_devices if x.sharding is None else 1) for x in batch.values())
  return dict(parameters=size(state.params), optimizer=size(state.opt_state), ema=size(state.averaged_params),
              batch=of_batch)


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
  shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
  return math.prod(shape) * x.dtype.itemsize


def _compile(program: build.Program, state: Any, batch: Any, log: Log
             ) -> tuple[jax.stages.Compiled | None, float, Exception | None]:
  """Return (compiled step, seconds, None), or (None, seconds, error) if it runs out of memory."""
  start = time.monotonic()
  try:
    with _log_progress(log):
      lowered = program.strategy.compile(program.step, donate=True).lower(state, batch)
      return lowered.compile(), round(time.monotonic() - start, 1), None
  except jax.errors.JaxRuntimeError as error:
    if not memory_lib.is_out_of_memory(error):
      raise
    return None, round(time.monotonic() - start, 1), error


@contextlib.contextmanager
def _log_progress(log: Log, every: float = 10.0) -> Iterator[None]:
  """Log the elapsed time every few seconds: the compiler does not report its progress."""
  done, start = threading.Event(), time.monotonic()

  def tick() -> None:
    while not done.wait(every):
      log(f'compiling for {time.monotonic() - start:.0f} s')

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _memory(compiled: jax.stages.Compiled, sizes: dict[str, int], available: int | None) -> Memory:
  """Return what the executable needs; `sizes` is what the device holds of state and batch, `available` what it has."""
  found: Any = compiled.memory_analysis()
  kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  needed = kept + found.temp_size_in_bytes + found.generated_code_size_in_bytes
  return Memory(
      fits=None if available is None else needed <= available, needed=needed, available=available,
      spare=None if available is None else available - needed, arguments=found.argument_size_in_bytes,
      temporaries=found.temp_size_in_bytes, code=found.generated_code_size_in_bytes, other=kept - sum(sizes.values()),
      **sizes)


def _time(cost: cost_lib.Cost, setup: Setup, chip: Chip | None) -> Time:
  """Return the cycles, where they go, and how much of the chip they use."""
  cycles = cost.cycles or None
  seconds = cycles / chip.clock if cycles and chip else None
  kinds: collections.Counter[str] = collections.Counter()
  for (_, kind), value in cost.operations.items():
    kinds[kind] += value
  result = Time(cycles, kinds=dict(kinds.most_common()), kernels=cost.kernels, operations=tuple(
      Operation(value, kind, where) for (where, kind), value in cost.operations.most_common(_NUM_OPERATIONS)))
  if seconds is None or chip is None:
    return result
  images = setup.batch_size / setup.devices  # a chip's part of the work: with tensor=2 two chips hold the same images
  work = None if setup.multiply_adds is None else 6 * setup.multiply_adds * images
  return dataclasses.replace(result, milliseconds=1e3 * seconds, images_per_second=images / seconds,
                             utilization=None if work is None else work / (seconds * chip.peak))


def _collectives(cost: cost_lib.Cost, num_devices: int, chip: Chip | None) -> Collectives:
  if num_devices == 1:
    kinds = {}
  else:
    kinds = {kind: Collective(number, cost.collective_bytes[kind]) for kind, number in sorted(cost.collectives.items())}
  # An all-reduce is a reduce-scatter and an all-gather; in a ring each of the two moves nearly all bytes once.
  moved = sum(value * (2 if kind == 'all-reduce' else 1) for kind, value in cost.collective_bytes.items())
  return Collectives(kinds, 1e3 * moved * (num_devices - 1) / num_devices / chip.link if chip else None)


def _notes(cost: cost_lib.Cost, setup: Setup) -> Iterator[str]:
  """Yield what the cycles leave out."""
  if cost.kernels:
    yield f'{cost.kernels} hand-written kernel(s) are not estimated: the cycles are too few'
  if cost.unread:
    yield f'{cost.unread} loop(s) of unknown length are counted once: the cycles are too few'
  if setup.remat == 'offload':
    yield 'moving offloaded activations to the host and back is not in the cycles'

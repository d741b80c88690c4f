"""What a training step costs a device: the typed result of `estimate` and `search`."""
from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setup:
  """The devices, the model and the batch of a plan.

  Attributes:
    device: kind of device, such as 'TPU v5e'.
    topology: TPU slice that is compiled for, such as 'v5e:2x4'; None for the devices that jax finds.
    devices: number of devices.
    strategy: in words.
    model: variant such as 'B/16', if the config has one.
    dtype: of activations and products.
    remat: rematerialization, None for none.
    unroll: whether each block is compiled separately.
    parameters: number of them.
    batch_size: images per step, over all devices.
    batch_per_device: images of the batch that a device holds; with parallel.tensor=n, n devices hold the same.
    num_micro_batches: that a device splits these into.
    multiply_adds: of the forward pass, per image; None if the objective does not make one pass over each, as MAE.
    versions: {package: version}.
  """
  device: str
  topology: str | None
  devices: int
  strategy: str
  model: str | None
  dtype: str
  remat: str | None
  unroll: bool
  parameters: int
  batch_size: int
  batch_per_device: int
  num_micro_batches: int
  multiply_adds: int | None
  versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory of one device in bytes; None if it is not known.

  Attributes:
    fits: whether the step fits; None for a device without a limit, such as a CPU.
    needed: what the step needs in total.
    available: what the device gives to a program.
    parameters: the device's shards of the parameters.
    optimizer: of the optimizer's state.
    ema: of the averaged parameters.
    batch: of a batch.
    spare: available, not needed; negative if the step does not fit.
    arguments: everything that goes into the step.
    temporaries: activations and everything else that lives during the step only.
    code: the program itself.
    other: outputs that are not donated, and padding.
  """
  fits: bool | None
  needed: float | None
  available: float | None
  parameters: int
  optimizer: int
  ema: int
  batch: int
  spare: float | None = None
  arguments: int | None = None
  temporaries: int | None = None
  code: int | None = None
  other: int | None = None


@dataclasses.dataclass(frozen=True)
class Operation:
  """Cycles of a source line; `kind` and `where` as in `cost.Cost.operations`."""
  cycles: int
  kind: str
  where: str


@dataclasses.dataclass(frozen=True)
class Time:
  """Time of a step without collectives, by the compiler's estimate; None if it gives none, as for CPUs and GPUs.

  Attributes:
    cycles: of one step.
    milliseconds: of one step, if the chip's clock is known.
    images_per_second: per device: the images of the batch, divided by the number of devices and the time.
    utilization: share of the chip's bfloat16 peak, 0..1.
    kinds: {kind of operation: cycles}, the largest first.
    kernels: number of hand-written kernels, which are not estimated.
    operations: the source lines with the most cycles, the largest first.
  """
  cycles: int | None = None
  milliseconds: float | None = None
  images_per_second: float | None = None
  utilization: float | None = None
  kinds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  kernels: int = 0
  operations: tuple[Operation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Collective:
  """How often a kind of collective runs in a step, and its bytes in total: the larger of input and output."""
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Collectives:
  """Communication of a step.

  Attributes:
    kinds: {kind: Collective}, empty for one device.
    milliseconds: lower bound from the links' bandwidth, if it is known; part of it is hidden behind the step.
  """
  kinds: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
  milliseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
  """The largest batch for one combination of settings; None if not even one image per device fits.

  Attributes:
    settings: {'SECTION.KEY': value}.
    batch_per_device: images.
    temporaries: bytes.
    spare: bytes.
    images_per_second: per device.
  """
  settings: Mapping[str, Any]
  batch_per_device: int | None = None
  temporaries: int | None = None
  spare: float | None = None
  images_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a training step costs a device.

  Attributes:
    setup: what is planned.
    memory: of a device.
    time: of a step.
    collectives: of a step.
    compile_seconds: tracing included.
    notes: what the figures leave out, or why there are none.
    advice: settings that would reduce the memory, if the step does not fit.
    settings: of the best trial of a search, else None.
    trials: one per combination of settings of a search.
  """
  setup: Setup
  memory: Memory
  time: Time
  collectives: Collectives
  compile_seconds: float
  notes: tuple[str, ...] = ()
  advice: tuple[str, ...] = ()
  settings: Mapping[str, Any] | None = None
  trials: tuple[Trial, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Return the plan as one flat dictionary for JSON; sizes are in GB (1e9 bytes)."""
    setup, memory, time = self.setup, self.memory, self.time
    keys = {'num_micro_batches': 'accumulate'}
    values = {keys.get(name, name): value for name, value in dataclasses.asdict(setup).items()}
    values['remat'] = setup.remat or 'none'
    values |= {f'{key}_gb': _gb(size) for key, size in dict(
        parameters=memory.parameters, optimizer=memory.optimizer, average=memory.ema, batch=memory.batch).items()}
    values |= dict(compile_seconds=self.compile_seconds, fits=memory.fits)
    values |= {f'{key}_gb': _gb(size) for key, size in dict(
        needed=memory.needed, hbm=memory.available, spare=memory.spare, argument=memory.arguments,
        temp=memory.temporaries, code=memory.code, other=memory.other).items()}
    values |= dict(
        cycles=time.cycles, milliseconds=time.milliseconds, images_per_second=time.images_per_second,
        utilisation=time.utilization,
        collectives={kind: dict(count=row.count, gb=_gb(row.bytes)) for kind, row in self.collectives.kinds.items()},
        collective_milliseconds=self.collectives.milliseconds, kinds=dict(time.kinds), kernels=time.kernels,
        notes=list(self.notes), operations=[dataclasses.asdict(row) for row in time.operations],
        advice=list(self.advice))
    if self.settings is not None:
      values |= dict(settings=dict(self.settings), search=[
          dict(settings=dict(trial.settings), batch_per_device=trial.batch_per_device, temp_gb=_gb(trial.temporaries),
               spare_gb=_gb(trial.spare), images_per_second=trial.images_per_second) for trial in self.trials])
    return values


def _gb(size: float | None) -> float | None:
  return None if size is None else size / 1e9

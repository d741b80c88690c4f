"""TPU chips in numbers, and slices of them that need not be there: `tpu_slice('v5e:16x16')`."""
import dataclasses
import importlib.util
import math
import os
import re

import jax

from vit_jax.base.choices import choose

_GIB = 1 << 30
_INSTALL = "pip install -e '.[tpu]'"


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do.

  Attributes:
    name: as topologies name it.
    peak: bfloat16 operations a second.
    clock: cycles a second of the compiler's estimates.
    memory: bytes of HBM that the compiler gives to a program.
    link: bytes a second that the chip can send to all its neighbours together.
    dimensions: of the torus it is part of.
    cores: TensorCores, by which Cloud counts some slices.
    options: what jax's topologies need to know beside the name.
  """
  name: str
  peak: float
  clock: float
  memory: int
  link: float
  dimensions: int
  cores: int = 1
  options: tuple = ()


@dataclasses.dataclass(frozen=True)
class Slice:
  """A chip's kind, a topology's name and its devices, one a chip."""
  chip: Chip
  name: str
  devices: tuple


def parse(name):
  """Splits 'v5e:16x16', or Cloud's 'v5litepod-256' or 'v4-16' (which counts cores), into (Chip, (16, 16)).

  Raises:
    ValueError: an unknown chip, or a shape or size that its slices do not have.
  """
  found = re.fullmatch(r'(\w+?)(?:pod)?(?:-(\d+)|:(\d+(?:x\d+)+))', name)
  if not found:
    raise ValueError(f"expected a topology such as 'v5e:16x16', 'v4:2x2x1' or 'v5litepod-256', got {name!r}")
  chip = choose(CHIPS, {'v5lite': 'v5e'}.get(found[1], found[1]), 'TPU')
  if found[2]:
    by_cores = chip.cores > 1  # v4 and v5p: Cloud's number is of TensorCores
    sizes = {chips * (chip.cores if by_cores else 1): shape for chips, shape in SHAPES[chip.dimensions].items()}
    return chip, choose(sizes, int(found[2]), f'size of a {chip.name} slice')
  shape = tuple(map(int, found[3].split('x')))
  chips = math.prod(shape)
  if len(shape) != chip.dimensions or not 4 <= chips <= 1024:
    examples = ', '.join(f'{chip.name}:' + 'x'.join(map(str, shape)) for shape in SHAPES[chip.dimensions].values())
    raise ValueError(f'expected {chip.dimensions} numbers and 4 to 1024 chips in a {chip.name} topology, got {name!r}; '
                     f'such as {examples}')
  return chip, shape


def tpu_slice(name):
  """The devices of a topology, for which programs compile but do not run; see `parse`. Keeps jax on the CPU.

  Raises:
    ValueError: no such topology, or the TPU compiler is not installed.
  """
  chip, shape = parse(name)
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(f'planning for {name} needs the TPU compiler, though no TPU; install it with: {_INSTALL}')
  for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  jax.config.update('jax_platforms', 'cpu')  # the TPU client would wait for a TPU
  from jax.experimental import topologies
  name = f'{chip.name}:' + 'x'.join(map(str, shape))
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name, **dict(chip.options))
  except Exception as error:  # the type differs from release to release
    raise ValueError(f'the TPU compiler does not know topology {name}: {error}') from error
  return Slice(chip, name, tuple(found.devices))


# peak: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. link: the bidirectional figure there, halved. memory: what libtpu
# 0.0.42 says is there when it runs out.
# clock: v4, Jouppi et al., arXiv 2304.01433, table 4; v5e, "How to Scale Your Model" (jax-ml.github.io/scaling-book),
# chapter 2; v5p and v6e from the peak, as 8 × 128² and 4 × 256² multiply-adds a cycle. With these the compiler's
# estimates make sense on all four: a product of 8192² bfloat16 matrices takes 0.90, 0.88, 0.90, 0.70 of the peak (v4, v5e,
# v5p, v6e), reading and writing 1 GiB 0.77, 0.81, 0.72, 0.81 of the bandwidth of HBM.
CHIPS = {chip.name: chip for chip in (
    # A v4 chip's two cores work as one device ("megacore"); the default here would be two.
    Chip('v4', peak=275e12, clock=1.05e9, memory=int(30.75 * _GIB), link=300e9, dimensions=3, cores=2,
         options=(('chip_config_name', 'megacore'),)),
    Chip('v5e', peak=197e12, clock=1.5e9, memory=int(15.75 * _GIB), link=200e9, dimensions=2),
    Chip('v5p', peak=459e12, clock=1.75e9, memory=int(95.74 * _GIB), link=600e9, dimensions=3, cores=2),
    Chip('v6e', peak=918e12, clock=1.75e9, memory=int(31.25 * _GIB), link=400e9, dimensions=2),
)}

# Usual slices by number of chips (the same pages); any other shape that the compiler accepts may be given as numbers.
SHAPES = {
    2: {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
        512: (8, 8, 8), 1024: (8, 8, 16)},
}

# No metadata server to ask, no lock file that admits one process, and names for what a TPU machine would tell; without
# these libtpu fills stderr with warnings.
ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0',
}

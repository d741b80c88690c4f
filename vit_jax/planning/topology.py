"""TPU slices to compile for, without having them: `tpu_slice('v5e:16x16')`."""
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.planning.chips import CHIPS, Chip

_INSTALL = "pip install -e '.[tpu]'"


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice.

  Attributes:
    chip: of which it is made.
    name: of the topology, such as 'v5e:16x16'.
    devices: one per chip; programs compile for them, but do not run.
  """
  chip: Chip
  name: str
  devices: tuple[Any, ...]


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
  """Split 'v5e:16x16', or Cloud's 'v5litepod-256' or 'v4-16' (which counts cores), into chip and shape.

  Returns:
    (chip, number of chips along each dimension of the torus).

  Raises:
    UserError: an unknown chip, or a shape or size that its slices do not have.
  """
  found = re.fullmatch(r'(\w+?)(?:pod)?(?:-(\d+)|:(\d+(?:x\d+)+))', name)
  if not found:
    raise UserError(f"--topology: expected one such as 'v5e:16x16', 'v4:2x2x1' or 'v5litepod-256'; got {name!r}")
  chip = choose(CHIPS, {'v5lite': 'v5e'}.get(found[1], found[1]), '--topology')
  if found[2]:
    by_cores = chip.cores > 1  # v4 and v5p: Cloud's number is of TensorCores
    sizes = {chips * (chip.cores if by_cores else 1): shape for chips, shape in SHAPES[chip.dimensions].items()}
    if int(found[2]) not in sizes:
      raise UserError(f'--topology: unknown size of a {chip.name} slice, {found[2]}; choose from {sorted(sizes)}')
    return chip, sizes[int(found[2])]
  shape = tuple(map(int, found[3].split('x')))
  chips = math.prod(shape)
  if len(shape) != chip.dimensions or not 4 <= chips <= 1024:
    examples = ', '.join(f'{chip.name}:' + 'x'.join(map(str, shape)) for shape in SHAPES[chip.dimensions].values())
    raise UserError(f'--topology: expected {chip.dimensions} numbers and 4 to 1024 chips for {chip.name}; got '
                    f'{name!r}. Choose from {examples}')
  return chip, shape


def tpu_slice(name: str) -> Slice:
  """Return the devices of a topology, for which programs compile but do not run; keeps jax on the CPU.

  Args:
    name: see `parse`.

  Raises:
    UserError: no such topology, or the TPU compiler is not installed.
  """
  chip, shape = parse(name)
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(f'--topology: {name} needs the TPU compiler, but no TPU. Install it with: {_INSTALL}')
  for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  jax.config.update('jax_platforms', 'cpu')  # the TPU client would wait for a TPU
  from jax.experimental import topologies
  name = f'{chip.name}:' + 'x'.join(map(str, shape))
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name, **dict(chip.options))
  except Exception as error:  # the type differs between releases
    raise UserError(f'--topology: the TPU compiler does not know {name}: {error}') from error
  return Slice(chip, name, tuple(found.devices))


# Usual slices by number of chips (the pages that `chips` cites); other shapes that the compiler accepts are given as
# numbers.
SHAPES: dict[int, dict[int, tuple[int, ...]]] = {
    2: {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
        512: (8, 8, 8), 1024: (8, 8, 16)},
}

# No metadata server to ask, no lock file that admits only one process, and the names that a TPU machine would provide;
# without these libtpu fills stderr with warnings.
ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0',
}

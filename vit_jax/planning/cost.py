"""The cost of a compiled program: the compiler's own cycles by source line, collectives and their bytes.

The TPU compiler writes the expected cycles next to every operation it schedules, except collectives and hand-written
kernels. A loop counts once per iteration, a conditional as its most expensive branch.
"""
from collections import Counter
from collections.abc import Mapping
import dataclasses
import functools
import pathlib

from vit_jax.planning import hlo
from vit_jax.planning.hlo import Instruction, Module

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')

_PACKAGE = pathlib.Path(__file__).parent.parent
_PRODUCTS = {'convolution', 'dot'}
_MOVES = {'copy', 'transpose', 'reshape', 'bitcast', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'pad',
          'concatenate', 'broadcast', 'convert', 'parameter', 'constant', 'tuple', 'get-tuple-element', 'iota',
          'reverse'}


@dataclasses.dataclass
class Cost:
  """Counters of one execution.

  Attributes:
    operations: cycles by (where, kind): a line such as 'models/attention.py:45 Attention.__call__', and 'matmul',
      'movement' (copies, slices, casts) or 'vector' (elementwise, reductions).
    collectives: number by kind.
    collective_bytes: bytes by kind: the larger of a device's input and output.
    kernels: number of hand-written kernels (Pallas), which the compiler does not estimate.
    unread: number of loops whose number of iterations could not be read: they are counted once.
  """
  operations: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
  collectives: Counter[str] = dataclasses.field(default_factory=Counter)
  collective_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
  kernels: int = 0
  unread: int = 0

  @property
  def cycles(self) -> int:
    """Sum over the operations; 0 from compilers that do not estimate."""
    return sum(self.operations.values())

  def add(self, other: 'Cost', times: int = 1) -> None:
    """Add `times` another cost."""
    for name in ('operations', 'collectives', 'collective_bytes'):
      getattr(self, name).update({key: times * value for key, value in getattr(other, name).items()})
    self.kernels += times * other.kernels
    self.unread += other.unread


def cost(module: Module) -> Cost:
  """Return the cost of one execution of a module."""

  @functools.cache
  def cost_of(name: str) -> Cost:
    total, shapes = Cost(), {}
    for line in module.computations[name]:
      shapes[line.name] = line.shape
      if line.cycles:
        total.operations[where(module, line), kind(module, line)] += line.cycles
      _count_collective(total, line, shapes, name)
      total.kernels += 'custom_call_target="tpu_custom_call"' in line.attributes
      _add_called(total, line)
    return total

  def _add_called(total: Cost, line: Instruction) -> None:
    if line.opcode == 'while':
      body, iterations = module.loop(line)
      total.unread += iterations is None
      total.add(cost_of(body), 1 if iterations is None else iterations)
    elif line.opcode == 'conditional':
      total.add(max(map(cost_of, line.called), key=lambda cost: (cost.cycles, sum(cost.collective_bytes.values()))))
    elif line.opcode in ('call', 'fusion', 'async-start') and not _continues_collective(line):
      for called in line.called:
        total.add(cost_of(called))

  return cost_of(module.entry)


def kind(module: Module, line: Instruction) -> str:
  """Return 'matmul', 'movement' or 'vector': what an operation, or everything fused into it, does."""
  inside = _opcodes(module, line)
  if inside & _PRODUCTS:
    return 'matmul'
  return 'vector' if inside - _MOVES else 'movement'


def where(module: Module, line: Instruction) -> str:
  """Return the innermost line of this package that an operation comes from; else of any file; else its opcode."""
  trace = list(module.trace(line.frame))
  for file, number, function in trace:
    path = pathlib.Path(file)
    if _PACKAGE in path.parents:
      return f'{path.relative_to(_PACKAGE)}:{number} {function}'
  return '{}:{} {}'.format(*trace[0]) if trace else f'added by the compiler: {line.opcode}'


def _continues_collective(line: Instruction) -> bool:
  """Return whether a fusion continues a collective that another fusion has started.

  The TPU compiler hides a collective behind other work by spreading it over fusions: async-collective-start, any number
  of async_collective_fusion and async-collective-done. Each contains the whole collective; the first one counts.
  """
  later = ('async-collective-done', 'async_collective_fusion')
  return any(name.startswith(later) for name in (line.name, *line.called))


def _opcodes(module: Module, line: Instruction) -> set[str]:
  if line.opcode != 'fusion':
    return {line.opcode}
  return set().union(*(_opcodes(module, inner) for name in line.called for inner in module.computations[name]))


def _count_collective(total: Cost, line: Instruction, shapes: Mapping[str, str], computation: str) -> None:
  name = line.opcode.removesuffix('-start')
  if name not in COLLECTIVES:
    return
  # On TPU a reduce-scatter is an all-reduce and a slice, fused.
  name = 'reduce-scatter' if 'reduce-scatter' in computation else name
  operands, result = (sum(hlo.size(shapes[operand]) for operand in line.operands), hlo.size(line.shape))
  if line.opcode.endswith('-start') and result > operands:
    result -= operands  # the result of a start holds its operands too
  total.collectives[name] += 1
  total.collective_bytes[name] += max(operands, result)

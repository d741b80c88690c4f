"""What a compiled program costs a device: the compiler's own cycles by source line, collectives and their bytes.

The TPU compiler writes the cycles it expects beside every operation it schedules, except collectives and hand-written
kernels. Loops count as often as they turn, of a conditional's branches the dearest.
"""
import collections
import dataclasses
import functools
import pathlib

from vit_jax.planning import hlo

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
    collective_bytes: bytes by kind: the larger of what a device puts in and gets out.
    kernels: hand-written kernels (Pallas), which the compiler does not estimate.
    unread: loops whose number of turns could not be read: they are counted once.
  """
  operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  collective_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  kernels: int = 0
  unread: int = 0

  @property
  def cycles(self):
    """The sum; 0 from compilers that do not estimate."""
    return sum(self.operations.values())

  def add(self, other, times=1):
    """Adds another cost, `times` over."""
    for name in ('operations', 'collectives', 'collective_bytes'):
      getattr(self, name).update({key: times * value for key, value in getattr(other, name).items()})
    self.kernels += times * other.kernels
    self.unread += other.unread


def cost(module):
  """The cost of one execution of a `hlo.Module`."""

  @functools.cache
  def of(name):
    total, shapes = Cost(), {}
    for line in module.computations[name]:
      shapes[line.name] = line.shape
      if line.cycles:
        total.operations[where(module, line), kind(module, line)] += line.cycles
      _count_collective(total, line, shapes, name)
      total.kernels += 'custom_call_target="tpu_custom_call"' in line.attributes
      _add_called(total, line)
    return total

  def _add_called(total, line):
    if line.opcode == 'while':
      body, turns = module.loop(line)
      total.unread += turns is None
      total.add(of(body), 1 if turns is None else turns)
    elif line.opcode == 'conditional':
      total.add(max(map(of, line.called), key=lambda cost: (cost.cycles, sum(cost.collective_bytes.values()))))
    elif line.opcode in ('call', 'fusion', 'async-start') and not _continues(line):
      for called in line.called:
        total.add(of(called))

  return of(module.entry)


def kind(module, line):
  """'matmul', 'movement' or 'vector': what an operation, or all that is fused into it, does."""
  inside = _opcodes(module, line)
  if inside & _PRODUCTS:
    return 'matmul'
  return 'vector' if inside - _MOVES else 'movement'


def where(module, line):
  """The innermost line of this package that asked for an operation; else of any file; else its opcode."""
  trace = list(module.trace(line.frame))
  for file, number, function in trace:
    path = pathlib.Path(file)
    if _PACKAGE in path.parents:
      return f'{path.relative_to(_PACKAGE)}:{number} {function}'
  return '{0}:{1} {2}'.format(*trace[0]) if trace else f'added by the compiler: {line.opcode}'


def _continues(line):
  """Whether a fusion goes on with a collective that another has begun.

  The TPU compiler hides a collective behind other work by cutting it in fusions: async-collective-start, any number of
  async_collective_fusion and async-collective-done. Each holds the collective whole; the first counts.
  """
  return any(name.startswith(('async-collective-done', 'async_collective_fusion')) for name in (line.name, *line.called))


def _opcodes(module, line):
  if line.opcode != 'fusion':
    return {line.opcode}
  return set().union(*(_opcodes(module, inner) for name in line.called for inner in module.computations[name]))


def _count_collective(total, line, shapes, computation):
  name = line.opcode.removesuffix('-start')
  if name not in COLLECTIVES:
    return
  # On TPU a reduce-scatter is an all-reduce and a slice, fused.
  name = 'reduce-scatter' if 'reduce-scatter' in computation else name
  given, result = (sum(hlo.size(shapes[operand]) for operand in line.operands), hlo.size(line.shape))
  if line.opcode.endswith('-start') and result > given:
    result -= given  # the result of a start holds its operands too
  total.collectives[name] += 1
  total.collective_bytes[name] += max(given, result)

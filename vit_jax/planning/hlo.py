"""Reads a compiled program as XLA prints it: computations, their instructions, and the Python lines they come from.

Only what a cost needs is understood: names, result shapes, opcodes, operands and attributes. XLA's printer is
`xla/hlo/ir/hlo_instruction.cc`; the tables of stack frames stand at the head of the text.
"""
import dataclasses
import functools
import re

_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r' ([a-z][a-z0-9\-]*)\(')
_ARRAY = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'\((\d+)\)')
_FRAME = re.compile(r'\bstack_frame_id=(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in its module.
    shape: of the result, as printed: 'f32[8,128]{1,0}', or a tuple of such.
    opcode: such as 'fusion' or 'all-reduce-start'.
    operands: names of the instructions it reads.
    attributes: the rest of the line.
  """
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def cycles(self):
    """The compiler's estimate of cycles for one execution; None where it gives none."""
    found = _CYCLES.search(self.attributes)
    return int(found[1]) if found else None

  @property
  def called(self):
    """Names of the computations it calls; a conditional's branches; not a loop's, see `Module.loop`."""
    named = [name for names in _BRANCHES.findall(self.attributes) for name in _NAME.findall(names)]
    return [*_CALLED.findall(self.attributes), *named]

  @property
  def frame(self):
    """Number of the stack frame that made it, or None."""
    found = _FRAME.search(self.attributes)
    return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: {name: instructions, in the order they run}.
    entry: name of the computation where it starts.
    frames: {number: (file, line, function, number of the caller's frame or None)}.
  """
  computations: dict[str, list[Instruction]]
  entry: str
  frames: dict[int, tuple]

  def loop(self, instruction):
    """(name of a while loop's body, how often it runs or None if that cannot be read)."""
    body, condition = (re.search(rf'\b{key}=%?([\w.\-]+)', instruction.attributes)[1] for key in ('body', 'condition'))
    known = _TRIPS.search(instruction.attributes)
    if known:
      return body, int(known[1])
    # jax's scan counts from 0 up to the one constant of its condition.
    bounds = [_CONSTANT.match(line.attributes) for line in self.computations[condition]
              if line.opcode == 'constant' and line.shape.startswith('s32[]')]
    return body, int(bounds[0][1]) if len(bounds) == 1 and bounds[0] else None

  def trace(self, frame):
    """Yields (file, line, function) from the innermost frame outwards; None has no frames."""
    while frame in self.frames:
      file, line, function, frame = self.frames[frame]
      yield file, line, function


def parse(text):
  """Reads the text of a compiled program, `compiled.as_text()`."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header[2], [])
        entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      current = None
    else:
      found = _instruction(line)
      current += [found] if found else []
  if entry is None:
    raise ValueError('expected the text of a compiled XLA module, found none with an ENTRY computation')
  return Module(computations, entry, _frames(text))


def size(shape):
  """Bytes of a printed shape, all arrays of a tuple; padding of tiled layouts is not counted."""
  total = 0
  for dtype, dimensions in _ARRAY.findall(shape):
    count = functools.reduce(lambda n, d: n * int(d), filter(None, dimensions.split(',')), 1)
    total += -(-count * _BITS.get(dtype, 0) // 8)
  return total


def _instruction(line):
  head = _INSTRUCTION.match(line)
  opcode = head and _OPCODE.search(line, head.end() - 1)
  if not opcode:
    return None
  depth, end = 1, opcode.end()
  while depth and end < len(line):  # operands may be printed with their shapes, which hold parentheses
    depth += {'(': 1, ')': -1}.get(line[end], 0)
    end += 1
  operands = tuple(_NAME.findall(line[opcode.end():end]))
  # A constant's value stands where others have operands.
  rest = line[opcode.end() - 1:] if opcode[1] == 'constant' else line[end:]
  return Instruction(head[1], line[head.end():opcode.start()], opcode[1], operands, rest)


def _frames(text):
  """The table of stack frames, four tables at the head of the text joined."""
  tables = {}
  for title in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
    found = re.search(rf'^{title}\n((?:\d+ .*\n)*)', text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    tables[title] = {int(number): value for number, value in (line.split(' ', 1) for line in lines)}
  numbers = lambda value: {key: int(number) for key, number in re.findall(r'(\w+)=(\d+)', value)}
  stack = {number: numbers(value) for number, value in tables['StackFrames'].items()}
  # The first frame has no caller: what it names as one shows whether callers are counted from 0 or from 1.
  shift = stack[1].get('parent_frame_id', 0) if 1 in stack else 0
  frames = {}
  for number, frame in stack.items():
    place = numbers(tables['FileLocations'][frame['file_location_id']])
    caller = frame.get('parent_frame_id', shift) - shift
    frames[number] = (tables['FileNames'][place['file_name_id']].strip('"'), place['line'],
                      tables['FunctionNames'][place['function_name_id']].strip('"'), caller or None)
  return frames


_BITS = {
    'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32, 'u32': 32, 's64': 64, 'u64': 64,
    'f8e4m3fn': 8, 'f8e5m2': 8, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128,
}

"""Parser of compiled programs as XLA prints them: computations, instructions, and the Python lines they come from.

It understands only what a cost needs: names, result shapes, opcodes, operands and attributes. XLA's printer is
`xla/hlo/ir/hlo_instruction.cc`; the tables of stack frames are at the head of the text.
"""
from collections.abc import Iterator
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
  def cycles(self) -> int | None:
    """The compiler's estimate of cycles for one execution; None if it gives none."""
    found = _CYCLES.search(self.attributes)
    return int(found[1]) if found else None

  @property
  def called(self) -> list[str]:
    """Names of the computations it calls, or of a conditional's branches; for loops see `Module.loop`."""
    named = [name for names in _BRANCHES.findall(self.attributes) for name in _NAME.findall(names)]
    return [*_CALLED.findall(self.attributes), *named]

  @property
  def frame(self) -> int | None:
    """Number of the stack frame that it comes from, or None."""
    found = _FRAME.search(self.attributes)
    return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: {name: instructions, in the order they run}.
    entry: name of the computation that starts it.
    frames: {number: (file, line, function, number of the caller's frame or None)}.
  """
  computations: dict[str, list[Instruction]]
  entry: str
  frames: dict[int, tuple[str, int, str, int | None]]

  def loop(self, instruction: Instruction) -> tuple[str, int | None]:
    """Return (name of a while loop's body, number of iterations or None if it cannot be read)."""
    body, condition = (re.findall(rf'\b{key}=%?([\w.\-]+)', instruction.attributes)[0] for key in ('body', 'condition'))
    known = _TRIPS.search(instruction.attributes)
    if known:
      return body, int(known[1])
    # jax's scan counts from 0 up to the one constant of its condition.
    bounds = [_CONSTANT.match(line.attributes) for line in self.computations[condition]
              if line.opcode == 'constant' and line.shape.startswith('s32[]')]
    return body, int(bounds[0][1]) if len(bounds) == 1 and bounds[0] else None

  def trace(self, frame: int | None) -> Iterator[tuple[str, int, str]]:
    """Yield (file, line, function) from the innermost frame outwards; nothing for None."""
    while frame in self.frames:
      file, line, function, frame = self.frames[frame]
      yield file, line, function


def parse(text: str) -> Module:
  """Parse the text of a compiled program, `compiled.as_text()`."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = None, None
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


def size(shape: str) -> int:
  """Return the bytes of a printed shape, all arrays of a tuple; padding of tiled layouts is not counted.

  >>> size('(bf16[3]{0}, u8[2,2]{1,0})')
  10
  """
  total = 0
  for dtype, dimensions in _ARRAY.findall(shape):
    count = functools.reduce(lambda n, d: n * int(d), filter(None, dimensions.split(',')), 1)
    total += -(-count * _BITS.get(dtype, 0) // 8)
  return total


def _instruction(line: str) -> Instruction | None:
  head = _INSTRUCTION.match(line)
  opcode = head and _OPCODE.search(line, head.end() - 1)
  if not head or not opcode:
    return None
  depth, end = 1, opcode.end()
  while depth and end < len(line):  # operands may be printed with their shapes, which hold parentheses
    depth += {'(': 1, ')': -1}.get(line[end], 0)
    end += 1
  operands = tuple(_NAME.findall(line[opcode.end():end]))
  # A constant has its value in the place of operands.
  rest = line[opcode.end() - 1:] if opcode[1] == 'constant' else line[end:]
  return Instruction(head[1], line[head.end():opcode.start()], opcode[1], operands, rest)


def _frames(text: str) -> dict[int, tuple[str, int, str, int | None]]:
  """Return the table of stack frames, joined from four tables at the head of the text."""
  tables = {}
  for title in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
    found = re.search(rf'^{title}\n((?:\d+ .*\n)*)', text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    tables[title] = {int(number): value for number, value in (line.split(' ', 1) for line in lines)}
  numbers = lambda value: {key: int(number) for key, number in re.findall(r'(\w+)=(\d+)', value)}
  stack = {number: numbers(value) for number, value in tables['StackFrames'].items()}
  # The first frame has no caller: the number it gives for one shows whether callers are counted from 0 or from 1.
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

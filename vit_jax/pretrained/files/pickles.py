"""Reads the pickle of a PyTorch file without Python's unpickler, which can run code: a file is data, never a program.

The interpreter below never imports, looks up or calls what a pickle names. It builds numbers, strings, lists, tuples
and dicts, and for the few names in `_CALLS` and `STORAGES` records of where a tensor's bytes are; it refuses every
other name and every other opcode. (Opcodes: `pickletools` of the standard library, which parses and does not execute.)
"""
from collections.abc import Callable
import dataclasses
import pickletools
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files import tensors as tensors_lib

MAX_PICKLE = 16 << 20
MAX_DEPTH = 16
MAX_OPCODES = MAX_NODES = 500_000
MAX_NAME = 500

# torch's storage classes: the dtype of their elements.
STORAGES = {
    'torch.DoubleStorage': 'float64', 'torch.FloatStorage': 'float32', 'torch.HalfStorage': 'float16',
    'torch.BFloat16Storage': 'bfloat16', 'torch.LongStorage': 'int64', 'torch.IntStorage': 'int32',
    'torch.ShortStorage': 'int16', 'torch.CharStorage': 'int8', 'torch.ByteStorage': 'uint8',
    'torch.BoolStorage': 'bool'}


class NotData(UserError):
  """A pickle that needs more than tensors and plain data; the file may be whole."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """Elements in the file, which tensors are views of.

  Attributes:
    dtype: of an element, such as 'bfloat16'.
    key: name of the archive entry below `data/`.
    elements: how many there are, as the pickle says.
  """
  dtype: str
  key: str
  elements: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor, as the pickle describes it: nothing is checked here.

  Attributes:
    storage: its elements.
    offset: of the first one in the storage.
    shape, strides: in elements.
  """
  storage: Storage
  offset: Any
  shape: Any
  strides: Any


@dataclasses.dataclass(frozen=True)
class _Global:
  """The name of a class or function in a pickle. It is only a name."""
  name: str


class _Ignored:
  """An object without a meaning for us, such as an argparse.Namespace; its attributes are dropped."""


def tensors_of(content: bytes) -> dict[str, Tensor]:
  """Return the tensors in a pickled dict by their path: those of {'model': {'a': tensor}} as 'model.a'.

  Raises:
    UserError: the pickle holds anything but plain data and tensors (the message names it), is damaged or too large.
  """
  return _flatten(_Machine().run(content))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
  del rest  # requires_grad, hooks and metadata
  if not isinstance(storage, Storage):
    raise UserError('a tensor in its pickle has no storage')
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *rest: Any) -> Any:
  del rest
  return tensor


# What REDUCE and NEWOBJ may name: data of our own that stands for the result.
_CALLS: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': lambda: {},
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch.Size': lambda shape=(): shape,
    'torch.device': lambda *args: _Ignored(),
    'argparse.Namespace': lambda *args: _Ignored(),
}
# Names that may be values: they say the type of something.
_VALUES = {f'torch.{dtype}' for dtype in (*STORAGES.values(), 'complex64')}
_LITERALS: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False, 'EMPTY_LIST': list, 'EMPTY_DICT': dict,
    'EMPTY_TUPLE': tuple}
_ARGUMENTS = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINBYTES',
              'SHORT_BINBYTES')
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class _Machine:
  """A stack, a memo, and one method for each group of opcodes that is allowed."""

  def __init__(self) -> None:
    self._stack: list[Any] = []
    self._marks: list[list[Any]] = []
    self._memo: dict[int, Any] = {}

  def run(self, content: bytes) -> Any:
    """Return the object that the pickle describes."""
    for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
      name = opcode.name
      if number > MAX_OPCODES:
        raise UserError(f'its pickle has more than {MAX_OPCODES:,} opcodes')
      if name in ('PROTO', 'FRAME'):
        continue
      if name == 'STOP':
        if position != len(content) - 1 or self._marks:
          raise UserError('its pickle ends in an impossible place')
        return self._pop()
      if name in _LITERALS:
        self._stack.append(_LITERALS[name]())
      elif name in _ARGUMENTS:
        self._stack.append(argument)
      elif name in _TUPLES:
        self._stack.append(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
      else:
        operation = getattr(self, f'_on_{name.lower()}', None)
        if operation is None:
          raise UserError(f'its pickle has the opcode {name}, which files of tensors do not need')
        operation(argument)
    raise UserError('its pickle has no end')

  def _pop(self) -> Any:
    if not self._stack:
      raise UserError('its pickle takes a value that is not there')
    return self._stack.pop()

  def _pop_mark(self) -> list[Any]:
    """Return the values since the last mark and go on with those before it."""
    if not self._marks:
      raise UserError('its pickle has no mark where it needs one')
    values, self._stack = self._stack, self._marks.pop()
    return values

  def _top(self, kind: type) -> Any:
    if not self._stack or not isinstance(self._stack[-1], kind):
      raise UserError('its pickle uses a value that is not there, or is of another type')
    return self._stack[-1]

  def _on_mark(self, argument: Any) -> None:
    del argument
    self._marks.append(self._stack)
    self._stack = []

  def _on_tuple(self, argument: Any) -> None:
    del argument
    values = tuple(self._pop_mark())
    self._stack.append(values)

  def _on_append(self, argument: Any) -> None:
    del argument
    value = self._pop()
    self._top(list).append(value)

  def _on_appends(self, argument: Any) -> None:
    del argument
    values = self._pop_mark()
    self._top(list).extend(values)

  def _on_setitem(self, argument: Any) -> None:
    del argument
    value, key = self._pop(), self._pop()
    _set_items(self._top(dict), [key, value])

  def _on_setitems(self, argument: Any) -> None:
    del argument
    values = self._pop_mark()
    _set_items(self._top(dict), values)

  def _on_binput(self, argument: int) -> None:
    self._memo[argument] = self._top(object)

  _on_long_binput = _on_binput

  def _on_memoize(self, argument: Any) -> None:
    del argument
    self._memo[len(self._memo)] = self._top(object)

  def _on_binget(self, argument: int) -> None:
    if argument not in self._memo:
      raise UserError('its pickle takes a value from memory that is not there')
    self._stack.append(self._memo[argument])

  _on_long_binget = _on_binget

  def _on_global(self, argument: str) -> None:
    self._push_global(argument.replace(' ', '.', 1))

  def _on_stack_global(self, argument: Any) -> None:
    del argument
    name, module = self._pop(), self._pop()
    if type(name) is not str or type(module) is not str:
      raise UserError('its pickle has a name that is not a string')
    self._push_global(f'{module}.{name}')

  def _push_global(self, name: str) -> None:
    if name not in _CALLS and name not in STORAGES and name not in _VALUES:
      raise NotData(f'its pickle needs {name[:100]!r}, which is not a tensor or plain data: it could run code and is '
                      'not loaded')
    self._stack.append(_Global(name))

  def _on_reduce(self, argument: Any) -> None:
    del argument
    arguments, function = self._pop(), self._pop()
    call = _CALLS.get(function.name) if isinstance(function, _Global) else None
    if call is None or not isinstance(arguments, tuple):
      raise UserError('its pickle calls something that is not a function of tensors')
    self._stack.append(call(*arguments))

  _on_newobj = _on_reduce

  def _on_build(self, argument: Any) -> None:
    """Drop the attributes of an object, such as the `_metadata` of a state dict."""
    del argument
    self._pop()
    if not isinstance(self._top(object), (dict, _Ignored)):
      raise UserError('its pickle gives attributes to something that has none')

  def _on_binpersid(self, argument: Any) -> None:
    """Replace ('storage', class, key, device, elements) by a Storage."""
    del argument
    value = self._pop()
    if not (isinstance(value, tuple) and len(value) == 5 and isinstance(value[1], _Global)
            and type(value[0]) is type(value[2]) is str and value[0] == 'storage' and type(value[4]) is int):
      raise UserError('its pickle refers to something that is not the storage of a tensor')
    if value[1].name not in STORAGES:
      raise UserError(f'its pickle has a storage of the unknown class {value[1].name!r}')
    self._stack.append(Storage(STORAGES[value[1].name], value[2], value[4]))


def _set_items(target: dict[Any, Any], values: list[Any]) -> None:
  """Set keys and values, which alternate. Keys are strings and numbers: the hash of a tuple can take for ever."""
  if len(values) % 2 or any(type(key) not in (str, int, float, bool, type(None)) for key in values[::2]):
    raise UserError('its pickle has a dict with keys that are not strings or numbers')
  target.update(zip(values[::2], values[1::2], strict=True))


def _flatten(root: Any) -> dict[str, Tensor]:
  """Return {path: tensor} of nested dicts; everything else in them is dropped."""
  if not isinstance(root, dict):
    raise UserError('expected a dict of tensors (a state dict) in its pickle, got something else')
  found: dict[str, Tensor] = {}
  todo: list[tuple[str, int, dict[Any, Any]]] = [('', 0, root)]
  nodes = 0
  while todo:
    prefix, depth, node = todo.pop()
    nodes += len(node)
    if depth > MAX_DEPTH or nodes > MAX_NODES or len(todo) + len(found) > tensors_lib.MAX_ENTRIES:
      raise UserError(f'its dicts are nested more than {MAX_DEPTH} deep, or hold more than {MAX_NODES:,} values or '
                      f'{tensors_lib.MAX_ENTRIES:,} tensors')
    for key, value in node.items():
      if not isinstance(value, (dict, Tensor)):
        continue
      name = f'{prefix}{str(key)[:MAX_NAME + 1]}'
      if len(name) > MAX_NAME or not name.isprintable():
        raise UserError(f'it has a name of more than {MAX_NAME} characters, or with some that cannot be printed')
      if isinstance(value, dict):
        todo.append((f'{name}.', depth + 1, value))
      elif name in found:
        raise UserError(f'it holds two tensors named {name}')
      else:
        found[name] = value
  return found

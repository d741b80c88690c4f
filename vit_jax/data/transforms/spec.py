"""The strings in a config that chain image transforms, such as 'inception_crop(area=(0.05, 1.0))|flip'."""
import ast
from collections.abc import Iterable, Iterator
import contextlib
import inspect
from typing import Any

import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.data.images.decode import Picture
from vit_jax.data.transforms.base import PictureTransform, Size, Transform, require, require_pixels
from vit_jax.data.transforms.registry import TAKES_PICTURE, TRANSFORMS

_MAX_LETTERS, _MAX_DEPTH = 2_000, 100

# Name and arguments of a transform.
Call = tuple[str, dict[str, Any]]


def parse(spec: str, size: Size) -> PictureTransform:
  """Build the transform that a string describes.

  Args:
    spec: names of TRANSFORMS joined by `|` and applied from left to right, with literal arguments if they have any.
    size: (rows, columns) that every image must have afterwards.

  Returns:
    A transform from (H, W, C) uint8, an array or a `Picture`, to (*size, C) uint8. It raises UserError if an image has
    another size afterwards.

  Raises:
    UserError: a string that cannot be parsed, an unknown transform, an argument that is unknown, missing or out of
      range, or a `size` that is not two positive integers.

  >>> transform = parse('resize_small(4)|central_crop', (4, 4))
  >>> transform(np.zeros((8, 12, 3), np.uint8), np.random.default_rng(0)).shape
  (4, 4, 3)
  """
  size = _check_size(size)
  nodes = _split(spec)
  transforms = [_build(node, spec, size) for node in nodes]
  takes_picture = _name(nodes[0]) in TAKES_PICTURE

  def chain(image: np.ndarray | Picture, rng: np.random.Generator) -> np.ndarray:
    channels = image.shape[-1]
    result: Any = image if takes_picture else np.asarray(image)
    for transform in transforms:
      result = transform(result, rng)
    if result.shape != (*size, channels) or result.dtype != np.uint8:
      raise UserError(
          f'transform {spec!r}: expected images of image_size (rows, columns) {size} with {channels} channels, uint8; '
          f'got shape {result.shape}, {result.dtype}. End it with a transform that gives this size: resize, '
          f"central_crop, random_crop or inception_crop, for example '{spec}|resize'.")
    return result

  return chain


def calls(spec: str) -> list[Call]:
  """Return the transforms of a spec in order, each with all its arguments, defaults included.

  Raises:
    UserError: as `parse`, except for arguments out of range.

  >>> calls('resize_small(256)|central_crop')[0]
  ('resize_small', {'smaller': 256, 'interpolation': 'bilinear', 'rounding': 'nearest'})
  """
  return [_call(node, spec) for node in _split(spec)]


def join(chain: Iterable[Call]) -> str:
  """Return the spec of some transforms, the reverse of `calls`; arguments at their default are left out.

  >>> join(calls("resize_small(256, 'bilinear', 'down')|central_crop"))
  "resize_small(256, rounding='down')|central_crop"
  """
  return '|'.join(_spelled(name, arguments) for name, arguments in chain)


def _spelled(name: str, arguments: dict[str, Any]) -> str:
  shown = []
  for parameter in _parameters(name):
    required = parameter.default is inspect.Parameter.empty
    value = arguments[parameter.name] if required else arguments.get(parameter.name, parameter.default)
    if required or value != parameter.default:
      shown.append(repr(value) if required else f'{parameter.name}={value!r}')
  return f'{name}({", ".join(shown)})' if shown else name


def _check_size(size: Any) -> Size:
  size = tuple(size) if isinstance(size, (tuple, list)) else size
  valid = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
  require(valid, 'image_size', size, '(rows, columns), two positive ints')
  require_pixels(*size)
  return size


def _split(spec: str) -> list[ast.expr]:
  """Return the syntax trees of the transforms in a spec, in order."""
  if isinstance(spec, str) and len(spec) > _MAX_LETTERS:  # Python's parser may crash on a million nested brackets
    raise UserError(f'transform {spec[:40]!r}…: has {len(spec):,} letters; at most {_MAX_LETTERS:,} are read')
  try:
    node = ast.parse(spec.strip(), mode='eval').body
    if _depth(node) > _MAX_DEPTH:
      raise ValueError(f'it nests more than {_MAX_DEPTH} expressions, or chains as many transforms')
  except (SyntaxError, AttributeError, ValueError, RecursionError, MemoryError) as error:
    signatures = ', '.join(_signature(name) for name in sorted(TRANSFORMS))
    raise UserError(f'transform {spec!r}: cannot be parsed: {error}. Expected a chain such as '
                    f"'inception_crop(area=(0.05, 1.0))|flip', of: {signatures}.") from error
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.insert(0, node.right)
    node = node.left
  return [node, *nodes]


def _depth(node: ast.AST) -> int:
  """Return the number of levels of a syntax tree."""
  depth, level = 0, [node]
  while level:
    depth, level = depth + 1, [child for parent in level for child in ast.iter_child_nodes(parent)]
  return depth


def _build(node: ast.expr, spec: str, size: Size) -> Transform:
  """Build one transform from its syntax tree: a name, or a call with literal arguments."""
  name, arguments = _call(node, spec)
  with _explained(node, spec):
    return TRANSFORMS[name](size, **arguments)


def _call(node: ast.expr, spec: str) -> Call:
  name = _name(node)
  choose(TRANSFORMS, name, f'transform {spec!r}')
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  with _explained(node, spec):
    args = [ast.literal_eval(argument) for argument in call.args]
    kwargs: dict[Any, Any] = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    bound = inspect.Signature(_parameters(name)).bind(*args, **kwargs)
    bound.apply_defaults()
    return name, bound.arguments


@contextlib.contextmanager
def _explained(node: ast.expr, spec: str) -> Iterator[None]:
  try:
    yield
  # TypeError: wrong arguments, or one of a type that the builder cannot compare.
  except (TypeError, ValueError) as error:
    raise UserError(f'transform {spec!r}: bad arguments in {ast.unparse(node)!r}: {error}. Expected '
                    f'{_signature(_name(node))}, with literal numbers, strings or tuples of them.') from error


def _name(node: ast.expr) -> str:
  """Return the name of a transform, or the whole expression if it has none."""
  function = node.func if isinstance(node, ast.Call) else node
  return function.id if isinstance(function, ast.Name) else ast.unparse(node)


def _parameters(name: str) -> list[inspect.Parameter]:
  """Return the parameters of a transform that a user gives: all but the size."""
  return list(inspect.signature(TRANSFORMS[name]).parameters.values())[1:]


def _signature(name: str) -> str:
  """Return a transform with its arguments and defaults, as a user writes it: 'flip(p=0.5)'."""
  shown = (parameter.replace(annotation=inspect.Parameter.empty) for parameter in _parameters(name))
  arguments = ', '.join(map(str, shown))
  return f'{name}({arguments})' if arguments else name

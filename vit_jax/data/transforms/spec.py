"""The strings in a config that chain image transforms.

    transform = parse('inception_crop(area=(0.05, 1.0))|flip', (224, 224))
    image = transform(image, rng)
"""

import ast
import inspect

import numpy as np

from vit_jax.data.transforms.crops import DECODE_PARTS, Size, Transform, TRANSFORMS


def parse(spec: str, size: Size) -> Transform:
  """Builds the transform a string describes, applied from left to right.

  Args:
    spec: operations of TRANSFORMS joined by `|`, with literal arguments where they have any.
    size: (rows, columns) every image must come out with.

  Returns:
    A transform from (H, W, C) uint8, an array or a `decode.Picture`, to (*size, C) uint8. It
    raises ValueError where an image comes out with another size.

  Raises:
    ValueError: the string cannot be read, an operation is unknown, an argument is unknown, missing
      or out of range, or `size` is not two positive integers.
  """
  size = _checked_size(size)
  operations = _operations(spec)
  transforms = [_build(node, spec, size) for node in operations]
  whole = _name(operations[0]) not in DECODE_PARTS

  def pipeline(image, rng):
    channels = image.shape[-1]
    image = np.asarray(image) if whole else image
    for transform in transforms:
      image = transform(image, rng)
    if image.shape != (*size, channels) or image.dtype != np.uint8:
      raise ValueError(
          f'Expected transform {spec!r} to give images of image_size (rows, columns) {size} with '
          f'{channels} channels, uint8; got shape {image.shape}, {image.dtype}. End it with an '
          "operation that gives this size: resize, central_crop, random_crop, inception_crop, "
          f"for example '{spec}|resize'.")
    return image

  return pipeline


def _checked_size(size: Size) -> Size:
  size = tuple(size) if isinstance(size, (tuple, list)) else size
  valid = isinstance(size, tuple) and len(size) == 2
  if not valid or not all(isinstance(side, int) and side > 0 for side in size):
    raise ValueError(f'Expected image_size to be (rows, columns), two positive ints, got {size!r}.')
  return size


def _operations(spec: str) -> list[ast.expr]:
  """Splits a spec into its operations, in order."""
  try:
    node = ast.parse(spec.strip(), mode='eval').body
  except (SyntaxError, AttributeError) as error:
    raise ValueError(
        f"Expected a transform such as 'inception_crop(area=(0.05, 1.0))|flip', got {spec!r}: "
        f'{error}. Operations: {_signatures()}.') from error
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.insert(0, node.right)
    node = node.left
  return [node, *nodes]


def _build(node: ast.expr, spec: str, size: Size) -> Transform:
  """Builds one operation from its syntax tree: a name, or a call with literal arguments."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  name = _name(node)
  if name not in TRANSFORMS:
    raise ValueError(f'Unknown operation {name!r} in transform {spec!r}; choose from '
                     f'{", ".join(sorted(TRANSFORMS))}, joined by |.')
  try:
    args = [ast.literal_eval(argument) for argument in call.args]
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    inspect.signature(TRANSFORMS[name]).bind(size, *args, **kwargs)
    return TRANSFORMS[name](size, *args, **kwargs)
  # TypeError: wrong arguments, or one of a type that the operation cannot compare.
  except (TypeError, ValueError) as error:
    raise ValueError(f'Bad arguments in {ast.unparse(node)!r} of transform {spec!r}: {error}. '
                     f'Expected {_signature(name)}, with numbers, strings or tuples of them '
                     'written out.') from error


def _name(node: ast.expr) -> str:
  """The operation's name, or the whole expression where it has none."""
  function = node.func if isinstance(node, ast.Call) else node
  return function.id if isinstance(function, ast.Name) else ast.unparse(node)


def _signature(name: str) -> str:
  parameters = list(inspect.signature(TRANSFORMS[name]).parameters.values())[1:]
  return f'{name}({", ".join(map(str, parameters))})' if parameters else name


def _signatures() -> str:
  return ', '.join(_signature(name) for name in sorted(TRANSFORMS))

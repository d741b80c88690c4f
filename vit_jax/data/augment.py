"""Image transforms on uint8 arrays, and the strings in a config that chain them.

A transform is a callable `(image, rng) -> image`; `image` is (H, W, C) uint8 with C = 1 or 3 and
is never written to, `rng` is the example's own `np.random.Generator`. An operation in TRANSFORMS
builds a transform from the config's image size, (rows, columns), and the arguments in the string:

    transform = parse('inception_crop(area=(0.05, 1.0))|flip', (224, 224))
    image = transform(image, rng)

Pillow resizes with antialiasing: shrinking averages over every source pixel, where `tf.image`'s
default takes the nearest four.
"""

import ast
import inspect
import math
from typing import Callable

import numpy as np
from PIL import Image

Size = tuple[int, int]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def parse(spec: str, size: Size) -> Transform:
  """Builds the transform a string describes, applied from left to right.

  Args:
    spec: operations of TRANSFORMS joined by `|`, with literal arguments where they have any.
    size: (rows, columns) every image must come out with.

  Returns:
    A transform from (H, W, C) uint8 to (*size, C) uint8. It raises ValueError where an image
    comes out with another size.

  Raises:
    ValueError: the string cannot be read, an operation is unknown, an argument is unknown, missing
      or out of range, or `size` is not two positive integers.
  """
  size = _checked_size(size)
  transforms = [_build(node, spec, size) for node in _operations(spec)]

  def pipeline(image, rng):
    channels = image.shape[-1]
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


def inception_crop(size: Size, area=(0.05, 1.0), aspect=(3 / 4, 4 / 3)) -> Transform:
  """Resizes a random part of the image to `size`: the crop of Szegedy et al. 2015, section 6.

  The sampling is that of TensorFlow's `sample_distorted_bounding_box`, with which the published
  ViT were trained (vision_transformer and big_vision, `inception_crop`): the aspect ratio is
  uniform, then the height is uniform among those for which the area fits. After 100 failed
  attempts the whole image is taken.

  Args:
    size: (rows, columns) to resize to.
    area: smallest and largest part of the image's area, 0 < smallest <= largest <= 1.
    aspect: smallest and largest width / height, both positive.
  """
  smallest, largest = area
  narrowest, widest = aspect
  _require(0 < smallest <= largest <= 1, 'area', area, '0 < smallest <= largest <= 1')
  _require(0 < narrowest <= widest, 'aspect', aspect, '0 < narrowest <= widest')

  def transform(image, rng):
    rows, columns = image.shape[:2]
    for _ in range(100):
      ratio = narrowest + (widest - narrowest) * rng.random()
      shape = _crop_shape(rows, columns, ratio, smallest, largest, rng.random())
      if shape:
        return _resized(_crop_at_random(image, shape, rng), size)
    return _resized(image, size)

  return transform


def flip(size: Size, p=0.5) -> Transform:
  """Mirrors left and right with probability `p`, 0..1."""
  del size
  _require(0 <= p <= 1, 'p', p, 'a probability, 0..1')
  return lambda image, rng: image[:, ::-1] if rng.random() < p else image


def resize(size: Size) -> Transform:
  """Resizes to `size`, bilinear, whatever that does to the aspect ratio."""
  return lambda image, rng: _resized(image, size)


def resize_small(size: Size, smaller) -> Transform:
  """Resizes so that the smaller side has `smaller` pixels, keeping the aspect ratio."""
  del size
  _require(isinstance(smaller, int) and smaller > 0, 'smaller', smaller, 'pixels, an int > 0')

  def transform(image, rng):
    del rng
    rows, columns = image.shape[:2]
    scale = smaller / min(rows, columns)
    return _resized(image, (round(rows * scale), round(columns * scale)))

  return transform


def central_crop(size: Size) -> Transform:
  """Cuts `size` out of the middle; where the margin is odd, the extra pixel goes below and right.

  The transform raises ValueError for an image smaller than `size`.
  """

  def transform(image, rng):
    del rng
    _require_room(image, size, 'central_crop')
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top:top + size[0], left:left + size[1]]

  return transform


def random_crop(size: Size) -> Transform:
  """Cuts `size` out anywhere, uniformly; raises ValueError for an image smaller than `size`."""

  def transform(image, rng):
    _require_room(image, size, 'random_crop')
    return _crop_at_random(image, size, rng)

  return transform


def pad_crop(size: Size, padding, fill='zero') -> Transform:
  """Adds `padding` pixels on each side, then cuts `size` out anywhere: the CIFAR augmentation.

  Args:
    size: (rows, columns) to cut out.
    padding: pixels, 0 or more.
    fill: what the added pixels hold: 'zero', or 'edge' for the nearest pixel of the image.
  """
  _require(isinstance(padding, int) and padding >= 0, 'padding', padding, 'pixels, an int >= 0')
  _require(fill in ('edge', 'zero'), 'fill', fill, "'edge' or 'zero'")

  def transform(image, rng):
    rows, columns, channels = image.shape
    padded_shape = (rows + 2 * padding, columns + 2 * padding, channels)
    if fill == 'zero':
      padded = np.zeros(padded_shape, np.uint8)
      padded[padding:padding + rows, padding:padding + columns] = image
    else:  # Indexing, as np.pad takes ten times as long on small images.
      row = np.arange(-padding, rows + padding).clip(0, rows - 1)
      column = np.arange(-padding, columns + padding).clip(0, columns - 1)
      padded = image[row[:, None], column]
    _require_room(padded, size, f'pad_crop({padding})')
    return _crop_at_random(padded, size, rng)

  return transform


def rotate(size: Size, degrees) -> Transform:
  """Turns by an angle uniform in -degrees..degrees, bilinear; corners that come in are black."""
  del size
  _require(0 <= degrees <= 180, 'degrees', degrees, '0..180')

  def transform(image, rng):
    angle = degrees * (2 * rng.random() - 1)
    return _from_pillow(_to_pillow(image).rotate(angle, Image.Resampling.BILINEAR))

  return transform


def _crop_shape(rows, columns, ratio, smallest, largest, uniform) -> Size | None:
  """Returns the (rows, columns) of a part with width / height = ratio, None where none fits.

  Args:
    rows, columns: the image's size.
    ratio: width / height.
    smallest, largest: bounds of the area, as parts of the image's.
    uniform: a number in [0, 1) that picks the height.
  """
  total = rows * columns
  lowest = round(math.sqrt(smallest * total / ratio))
  highest = min(round(math.sqrt(largest * total / ratio)), rows, int((columns + 0.5) / ratio))
  lowest = min(lowest, highest)
  height = lowest + int(uniform * (highest - lowest + 1))
  # Rounding can leave the bounds by less than a pixel row: TensorFlow tries the neighbours too.
  for height in (height, height + 1, height - 1):
    width = round(height * ratio)
    fits = 0 < height <= rows and 0 < width <= columns
    if fits and smallest * total <= height * width <= largest * total:
      return height, width
  return None


def _crop_at_random(image: np.ndarray, size: Size, rng: np.random.Generator) -> np.ndarray:
  top = int(rng.random() * (image.shape[0] - size[0] + 1))  # A third of rng.integers' time.
  left = int(rng.random() * (image.shape[1] - size[1] + 1))
  return image[top:top + size[0], left:left + size[1]]


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
  if image.shape[:2] == size:
    return image
  rows, columns = size
  # Pillow counts (width, height).
  return _from_pillow(_to_pillow(image).resize((columns, rows), Image.Resampling.BILINEAR))


def _to_pillow(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)


def _from_pillow(image: Image.Image) -> np.ndarray:
  pixels = np.asarray(image)
  return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _require(valid: bool, name: str, value, expected: str) -> None:
  if not valid:
    raise ValueError(f'expected {name} to be {expected}, got {value!r}')


def _require_room(image: np.ndarray, size: Size, operation: str) -> None:
  if image.shape[0] < size[0] or image.shape[1] < size[1]:
    raise ValueError(
        f'{operation} to (rows, columns) {size} needs an image at least as large, got '
        f"{image.shape[:2]}. Put 'resize_small({max(size)})' before it.")


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
  name = call.func.id if isinstance(call.func, ast.Name) else ast.unparse(node)
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


def _signature(name: str) -> str:
  parameters = list(inspect.signature(TRANSFORMS[name]).parameters.values())[1:]
  return f'{name}({", ".join(map(str, parameters))})' if parameters else name


def _signatures() -> str:
  return ', '.join(_signature(name) for name in sorted(TRANSFORMS))


TRANSFORMS = {
    'central_crop': central_crop,
    'flip': flip,
    'inception_crop': inception_crop,
    'pad_crop': pad_crop,
    'random_crop': random_crop,
    'resize': resize,
    'resize_small': resize_small,
    'rotate': rotate,
}

"""Affine maps of Pillow images, mode L or RGB: nearest neighbour, the size stays, what comes in at the edges is `fill`.

Coordinates count pixels from the centre of the upper left one, as `tensorflow_addons.image.transform` has them; a
coordinate half-way between two pixels may fall to either.
"""

import math

from PIL import Image


def rotate(image: Image.Image, degrees: float, fill: int) -> Image.Image:
  """Turns about the image's centre, counter-clockwise."""
  x, y = (image.width - 1) / 2, (image.height - 1) / 2
  cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  back = (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)
  return _warped(image, back, fill)


def shear_x(image: Image.Image, slope: float, fill: int) -> Image.Image:
  """Moves each row to the left by `slope` times its number: the upper row stays."""
  return _warped(image, (1, slope, 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, slope: float, fill: int) -> Image.Image:
  """Moves each column up by `slope` times its number: the left column stays."""
  return _warped(image, (1, 0, 0, slope, 1, 0), fill)


def translate_x(image: Image.Image, pixels: float, fill: int) -> Image.Image:
  """Moves the image to the left."""
  return _warped(image, (1, 0, pixels, 0, 1, 0), fill)


def translate_y(image: Image.Image, pixels: float, fill: int) -> Image.Image:
  """Moves the image up."""
  return _warped(image, (1, 0, 0, 0, 1, pixels), fill)


def _warped(image, back, fill):
  """Takes pixel (x, y) from (a x + b y + c, d x + e y + f)."""
  a, b, c, d, e, f = back
  # Pillow's coordinates begin at the pixel's corner.
  corner = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
  fillcolor = (fill,) * len(image.getbands())
  return image.transform(image.size, Image.Transform.AFFINE, corner, Image.Resampling.NEAREST,
                         fillcolor=fillcolor if len(fillcolor) > 1 else fill)

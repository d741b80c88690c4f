"""A ResNet with group normalization and standardized kernels ("Big Transfer", arXiv 1912.11370, section 3)."""
from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from vit_jax.base.choices import choose
from vit_jax.models import layers
from vit_jax.models.base import Images
from vit_jax.models.bit.shape import NUMERICS, Numerics, ResNetShape
from vit_jax.models.encoder import BLOCK_INPUT, REMAT, constrain_batch_sharding

FeatureMap = Float[Array, 'batch rows columns features']


class StandardizedConv(nnx.Module):
  """A convolution without bias whose kernel is standardized for each output feature (arXiv 1903.10520).

  Args:
    inputs, outputs: features.
    size: rows and columns of the kernel.
    stride: in both directions.
    numerics: padding and epsilon.
    dtype: of inputs and products; the kernel is standardized in float32.
    rngs: parameter stream.
  """

  def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, numerics: Numerics, dtype: DTypeLike,
               rngs: nnx.Rngs):
    self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (size, size, inputs, outputs), jnp.float32))
    self.stride, self.numerics, self.dtype = stride, numerics, dtype

  def __call__(self, x: FeatureMap) -> FeatureMap:
    """Return the convolution of x with the standardized kernel, in the layer's dtype."""
    kernel = standardize(self.kernel[...], self.numerics)
    pad = (kernel.shape[0] - 1) // 2
    padding = 'SAME' if self.numerics.padding == 'same' else [(pad, pad)] * 2
    x = jax.lax.conv_general_dilated(x.astype(self.dtype), kernel.astype(self.dtype), [self.stride] * 2, padding,
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return checkpoint_name(x, layers.DENSE)


def standardize(kernel: Float[Array, 'rows columns inputs outputs'],
                numerics: Numerics) -> Float[Array, 'rows columns inputs outputs']:
  """Return a kernel with mean 0 and variance 1 over all axes but the last."""
  kernel = kernel - kernel.mean(axis=(0, 1, 2))
  variance = jnp.square(kernel).mean(axis=(0, 1, 2))
  if numerics.epsilon_inside:
    return kernel * jax.lax.rsqrt(variance + numerics.epsilon)
  return kernel / (jnp.sqrt(variance) + numerics.epsilon)


class GroupNorm(nnx.Module):
  """Group normalization (arXiv 1803.08494), computed in float32 and rounded once."""

  def __init__(self, features: int, *, groups: int, epsilon: float, zero: bool = False):
    self.scale = nnx.Param(jnp.full((features,), 0.0 if zero else 1.0, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
    self.groups, self.epsilon = groups, epsilon

  def __call__(self, x: FeatureMap) -> FeatureMap:
    """Return x normalized over places and the features of each group."""
    batch, rows, columns, features = x.shape
    y = x.astype(jnp.float32).reshape(batch, rows * columns, self.groups, features // self.groups)
    mean = y.mean(axis=(1, 3), keepdims=True)
    variance = jnp.square(y - mean).mean(axis=(1, 3), keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
    return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


class PreActivationUnit(nnx.Module):
  """Bottleneck unit of a ResNet v2: x + conv(conv(conv(x))), each convolution after normalization and ReLU.

  Args:
    inputs, outputs: features; the bottleneck has outputs / 4.
    stride: of the 3x3 convolution.
    project: whether the shortcut is a 1x1 convolution.
    conv, norm: constructors of the layers: (inputs, outputs, size, stride) and (features).
  """

  def __init__(self, inputs: int, outputs: int, stride: int, project: bool, conv: Callable[..., StandardizedConv],
               norm: Callable[..., GroupNorm]):
    middle = outputs // 4
    self.norm1, self.conv1 = norm(inputs), conv(inputs, middle, 1, 1)
    self.norm2, self.conv2 = norm(middle), conv(middle, middle, 3, stride)
    self.norm3, self.conv3 = norm(middle), conv(middle, outputs, 1, 1)
    self.conv_proj = conv(inputs, outputs, 1, stride) if project else None

  def __call__(self, x: FeatureMap) -> FeatureMap:
    """Return the unit's output."""
    y = jax.nn.relu(self.norm1(x))
    shortcut = x if self.conv_proj is None else self.conv_proj(y)
    y = jax.nn.relu(self.norm2(self.conv1(y)))
    y = jax.nn.relu(self.norm3(self.conv2(y)))
    return shortcut + self.conv3(y)


class PostActivationUnit(nnx.Module):
  """Bottleneck unit of a ResNet v1: relu(x + conv(conv(conv(x)))), each convolution before normalization and ReLU.

  The last normalization starts at zero. Args as for `PreActivationUnit`.
  """

  def __init__(self, inputs: int, outputs: int, stride: int, project: bool, conv: Callable[..., StandardizedConv],
               norm: Callable[..., GroupNorm]):
    middle = outputs // 4
    self.conv1, self.norm1 = conv(inputs, middle, 1, 1), norm(middle)
    self.conv2, self.norm2 = conv(middle, middle, 3, stride), norm(middle)
    self.conv3, self.norm3 = conv(middle, outputs, 1, 1), norm(outputs, zero=True)
    self.conv_proj = conv(inputs, outputs, 1, stride) if project else None
    self.norm_proj = norm(outputs) if project else None

  def __call__(self, x: FeatureMap) -> FeatureMap:
    """Return the unit's output."""
    y = jax.nn.relu(self.norm1(self.conv1(x)))
    y = jax.nn.relu(self.norm2(self.conv2(y)))
    y = self.norm3(self.conv3(y))
    shortcut = x if self.conv_proj is None or self.norm_proj is None else self.norm_proj(self.conv_proj(x))
    return jax.nn.relu(shortcut + y)


class Stage(nnx.Module):
  """The units `unit01`, `unit02`, … of one stage."""

  def __init__(self, units: list[PreActivationUnit | PostActivationUnit]):
    for number, unit in enumerate(units, 1):
      setattr(self, f'unit{number:02}', unit)
    self.count = len(units)

  @property
  def units(self) -> list[Any]:
    """The units in order."""
    return [getattr(self, f'unit{number:02}') for number in range(1, self.count + 1)]


class ResNet(nnx.Module):
  """A ResNet without a head: `resnet(images)` gives the last feature map.

  Its children are `conv_root`, `norm_root` (v1 only) and the stages `block1`, `block2`, ….

  Args:
    shape: see `ResNetShape`.
    dtype: of activations and products.
    remat: what each unit recomputes for its gradient, a name of `encoder.REMAT` or None.
    rngs: parameter stream.
  """

  def __init__(self, shape: ResNetShape, *, dtype: DTypeLike, remat: str | None, rngs: nnx.Rngs):
    numerics = NUMERICS[shape.numerics]
    conv = lambda *args: StandardizedConv(*args, numerics=numerics, dtype=dtype, rngs=rngs)
    norm = lambda features, zero=False: GroupNorm(features, groups=shape.groups, epsilon=numerics.norm_epsilon,
                                                  zero=zero)
    unit = PreActivationUnit if shape.preactivation else PostActivationUnit
    self.conv_root = conv(shape.channels, shape.stem_width, 7, 2)
    self.norm_root = None if shape.preactivation else norm(shape.stem_width)
    inputs = shape.stem_width
    for stage, (count, outputs) in enumerate(zip(shape.blocks, shape.stage_widths, strict=True), 1):
      first = unit(inputs, outputs, 1 if stage == 1 else 2, True, conv, norm)
      rest = [unit(outputs, outputs, 1, False, conv, norm) for _ in range(count - 1)]
      setattr(self, f'block{stage}', Stage([first, *rest]))
      inputs = outputs
    self.shape, self.remat = shape, remat or 'none'
    choose(REMAT, self.remat, 'model.remat')

  def __call__(self, images: Images, stages: int | None = None) -> FeatureMap:
    """Return the feature map after some of the stages.

    Args:
      images: floats, already normalized.
      stages: how many; 0 is the root alone, None all of them.
    """
    x = self.conv_root(jnp.asarray(images))
    x = x if self.norm_root is None else jax.nn.relu(self.norm_root(x))
    x = max_pool(x, NUMERICS[self.shape.numerics].pool)
    for stage in range(1, 1 + (len(self.shape.blocks) if stages is None else stages)):
      for unit in getattr(self, f'block{stage}').units:
        x = self._run(unit, x)
    return x

  def _run(self, unit: PreActivationUnit | PostActivationUnit, x: FeatureMap) -> FeatureMap:
    graphdef, own = nnx.split(unit)
    body = REMAT[self.remat](lambda x, own: nnx.merge(graphdef, own)(checkpoint_name(x, BLOCK_INPUT)))
    return constrain_batch_sharding(body(x, own))


def max_pool(x: FeatureMap, padding: str) -> FeatureMap:
  """Return the maximum over 3x3 places, moving by 2; `padding` is a `Numerics.pool`."""
  if padding == 'zeros':
    x, padding = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 'valid'
  pads = [(0, 0), (1, 1), (1, 1), (0, 0)] if padding == 'symmetric' else padding.upper()
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

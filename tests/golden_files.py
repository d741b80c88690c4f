"""Shared by the tests of weight files: the golden files, a quick forward pass, reading and writing damaged files."""
import functools
import json
import pathlib
import struct

from flax import nnx
import jax
import numpy as np

from vit_jax.models.base import flatten
from vit_jax.pretrained import load
from vit_jax.pretrained.formats import weights as weights_lib

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# Every golden model: its file or directory, by name.
_FILES = ('vit_*.npz', 'bv_*.npz', 'mixer*.npz', 'hybrid_*.npz', 'resnet_*.npz', 'bit_*.npz', 'hf_vit*', 'hf_bit*', 'timm_*')
MODELS = {path.stem: path for path in sorted(path for pattern in _FILES for path in GOLDEN.glob(pattern))
          if not path.name.endswith('.io.npz')}
# Families that few formats hold, most of them backbones: see tests/pretrained/test_golden_families.py.
FAMILIES = {path.parent.name: path.parent for path in sorted(GOLDEN.glob('*/io.npz')) if path.parent.name not in MODELS}


def vectors(name):
  """Return (images (2, rows, columns, 3), the outputs of the reference implementation)."""
  path = MODELS[name]
  with np.load(path / 'io.npz' if path.is_dir() else path.with_suffix('.io.npz')) as io:
    return io['images'], io['output']


def read(name, **options):
  """Return the `Weights` of a golden model; its image size is given, as some files do not say it."""
  return load.read(MODELS[name], trained_at=vectors(name)[0].shape[1:3], **options)


def logits(weights, images):
  """Return the outputs of a model with these weights; compiled once per config."""
  return np.asarray(_forward(weights.config)(weights.params, images))


@functools.cache
def _forward(config):
  graphdef = nnx.graphdef(weights_lib.abstract_model(config))
  # Compiling is nearly all that takes time here.
  options = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
  return jax.jit(lambda params, images: nnx.merge(graphdef, params)(images), compiler_options=options)


def assert_same_params(ours, theirs):
  """Check that two trees of parameters are equal bit for bit."""
  ours, theirs = flatten(ours), flatten(theirs)
  assert set(ours) == set(theirs)
  for path, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path, strict=True)


def arrays_of(path):
  """Return {name: array} of an `.npz` file."""
  with np.load(path) as file:
    return dict(file)


def safetensors_of(path):
  """Return (header, data) of a `.safetensors` file."""
  content = pathlib.Path(path).read_bytes()
  length = struct.unpack('<Q', content[:8])[0]
  return json.loads(content[8:8 + length]), content[8 + length:]


def write_safetensors(path, header, data):
  """Write a `.safetensors` file with any header: a dict, or bytes."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  return path

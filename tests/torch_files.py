"""Writes files as `torch.save` does, without torch: a zip archive of a pickle and the bytes of each storage."""
import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGES = {'float64': 'DoubleStorage', 'float32': 'FloatStorage', 'float16': 'HalfStorage',
            'bfloat16': 'BFloat16Storage', 'int64': 'LongStorage', 'int32': 'IntStorage', 'uint8': 'ByteStorage',
            'bool': 'BoolStorage'}


def fake(module, name, **attributes):
  """Return a class that pickles as `module.name`."""
  return type(name, (), dict(__module__=module, __qualname__=name, **attributes))


_CLASSES = {name: fake('torch', name) for name in STORAGES.values()}


def _rebuild_tensor_v2(*args):
  raise AssertionError('never called')


_rebuild_tensor_v2.__module__ = 'torch._utils'


class View:
  """A tensor as its storage and how it is laid out there; everything can be given wrong."""

  def __init__(self, array, key=None, offset=0, shape=None, strides=None, dtype=None, elements=None, rest=(
      False, collections.OrderedDict())):
    self.array, self.key, self.offset, self.rest = np.asarray(array), key, offset, rest
    self.shape = self.array.shape if shape is None else shape
    contiguous = np.empty(self.shape, np.int8).strides if strides is None and shape is None else strides
    self.strides = tuple(contiguous) if contiguous is not None else None
    self.dtype = dtype or self.array.dtype.name
    self.elements = self.array.size if elements is None else elements

  def __reduce__(self):
    return _rebuild_tensor_v2, (Storage(self), self.offset, self.shape, self.strides, *self.rest)


class Storage:
  """Pickled as a persistent id."""

  def __init__(self, view):
    self.view = view


class _Pickler(pickle._Pickler):  # the one in Python, which can be made to write names that do not exist here

  def __init__(self, file, protocol, storages):
    super().__init__(file, protocol)
    self.storages = storages

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    view = obj.view
    key = view.key if view.key is not None else str(len(self.storages))
    self.storages.setdefault(key, view.array)
    return 'storage', _CLASSES[STORAGES[view.dtype]], key, 'cpu', view.elements

  def save_global(self, obj, name=None):
    """Write the name of a class or function whether or not it can be imported."""
    module, name = obj.__module__, name or obj.__qualname__
    if self.proto >= 4:
      self.save(module)
      self.save(name)
      self.write(pickle.STACK_GLOBAL)
    else:
      self.write(pickle.GLOBAL + f'{module}\n{name}\n'.encode())
    self.memoize(obj)

  dispatch = dict(pickle._Pickler.dispatch)
  dispatch[type] = save_global
  dispatch[types.FunctionType] = save_global


def pickled(value, protocol=2):
  """Return (pickle, {key: array}) of nested containers in which arrays are tensors."""
  file, storages = io.BytesIO(), {}
  _Pickler(file, protocol, storages).dump(_with_views(value))
  return file.getvalue(), storages


def save(path, value, protocol=2, root='archive', order=sys.byteorder, data=None, **options):
  """Write a value; `data` replaces the pickle. Return the path."""
  content, storages = pickled(value, protocol)
  with zipfile.ZipFile(path, 'w', **options) as archive:
    archive.writestr(f'{root}/data.pkl', content if data is None else data)
    archive.writestr(f'{root}/byteorder', order)
    for key, array in storages.items():
      archive.writestr(f'{root}/data/{key}', array.tobytes())
    archive.writestr(f'{root}/version', '3\n')
  return path


def _with_views(value, done=None):
  """Return nested dicts with a View for each array; a dict that occurs twice stays one."""
  done = {} if done is None else done
  if isinstance(value, dict) and id(value) not in done:
    done[id(value)] = type(value)((key, _with_views(item, done)) for key, item in value.items())
  return View(value) if isinstance(value, np.ndarray) else done.get(id(value), value)

"""PyTorch's files: tensors are read, nothing is executed, and damage is an error."""
import argparse
import collections
import contextlib
import pickle
import pickletools
import random
import shutil
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import golden_files, torch_files
from tests.golden_files import MODELS
from tests.pretrained.test_files import assert_refused, read_all, sample
from tests.torch_files import View, fake
from vit_jax.base.errors import UserError
from vit_jax.pretrained import convert, load
from vit_jax.pretrained.files import pickles
from vit_jax.pretrained.files import reader as files

ARRAYS = load_file(MODELS['timm_token'] / 'model.safetensors')


@pytest.fixture(autouse=True)
def config(tmp_path):
  """Put the config beside the files: the model is too small for its heads to be inferred."""
  shutil.copy(MODELS['timm_token'] / 'config.json', tmp_path)


def arrays_of(path):
  with files.open_file(path) as tensors:
    return {name: tensors.fetch(name) for name in tensors.shapes}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('root', ['archive', 'model'])
def test_a_state_dict(root, protocol, tmp_path):
  path = torch_files.save(tmp_path / 'model.pth', ARRAYS, protocol, root)
  golden_files.assert_same_params(load.read(path).params, golden_files.read('timm_token').params)


def test_a_training_checkpoint(tmp_path):
  """Nested state dicts; numbers, strings and argparse's arguments beside them are dropped."""
  checkpoint = {
      'model': collections.OrderedDict(ARRAYS), 'epoch': 7, 'metric': 0.5, 'arch': 'vit', 'big': 2 ** 40, 'flags': (
          True, None, -3, [1.5, ('a', 'b', 'c', 'd')]), 'args': argparse.Namespace(lr=0.1, names=['a']),
      'optimizer': {'state': {0: {'step': np.full((), 3, np.float32), 'exp_avg': np.zeros(4, np.float32)}},
                    'param_groups': [{'lr': 0.1, 'params': [0, 1]}]}}
  path = torch_files.save(tmp_path / 'checkpoint.pth', checkpoint)
  weights = load.read(path)
  golden_files.assert_same_params(weights.params, golden_files.read('timm_token').params)
  assert weights.notes[:2] == ('names: prefix model. stripped', 'left out: training state (optimizer)')
  assert arrays_of(path)['optimizer.state.0.step'].shape == ()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_dtypes_are_kept(dtype, tmp_path):
  small = {name: array.astype(getattr(ml_dtypes, dtype, dtype)) for name, array in ARRAYS.items()}
  path = torch_files.save(tmp_path / 'model.pth', {'state_dict': small})
  convert.convert(path, tmp_path / 'out', format='timm')
  back = load_file(tmp_path / 'out' / 'model.safetensors')
  assert all(array.tobytes() == small[name].tobytes() and array.dtype == dtype for name, array in back.items())


def test_views(tmp_path):
  """Tensors that share a storage, transposed and with an offset; all types of elements."""
  flat = np.arange(24, dtype=np.float32)
  many = {name: np.arange(3).astype(getattr(ml_dtypes, name, name)) for name in torch_files.STORAGES}
  path = torch_files.save(tmp_path / 'a.pth', {
      'a': View(flat, 'shared', 0, (2, 3), (3, 1)), 'b': View(flat, 'shared', 6, (3, 4), (1, 3)),
      'empty': np.zeros((0, 3), np.float32), 'none': View(flat, 'shared', 24, (0,), (1,)), **many})
  stored = arrays_of(path)
  np.testing.assert_array_equal(stored['a'], flat[:6].reshape(2, 3))
  np.testing.assert_array_equal(stored['b'], flat[6:18].reshape(4, 3).T)
  assert stored['empty'].shape == (0, 3) and stored['none'].shape == (0,)
  for name, array in many.items():
    np.testing.assert_array_equal(stored[name], array, strict=True)


@pytest.mark.parametrize('names', [('pytorch_model.bin',), ('vit.pth',), ('vit.pt',), ('model.safetensors', 'old.pth')])
def test_in_a_folder(names, tmp_path):
  for name in names:
    torch_files.save(tmp_path / name, ARRAYS)
  if 'model.safetensors' in names:
    (tmp_path / 'model.safetensors').write_bytes((MODELS['timm_token'] / 'model.safetensors').read_bytes())
    (tmp_path / 'old.pth').write_bytes(b'damaged')
  golden_files.assert_same_params(load.read(tmp_path).params, golden_files.read('timm_token').params)
  torch_files.save(tmp_path / 'z.pth', ARRAYS)
  if names == ('vit.pth',):
    with pytest.raises(UserError, match='holds several weight files; name one of vit.pth, z.pth'):
      load.read(tmp_path)


# What is refused


class Call:
  """An object whose unpickling calls a function of any name."""

  def __init__(self, module, name, *args):
    self.function, self.args = fake(module, name), args

  def __reduce__(self):
    return self.function, self.args


@pytest.mark.parametrize('module, name', [
    ('os', 'system'), ('builtins', 'eval'), ('builtins', 'getattr'), ('__builtin__', 'set'), ('subprocess', 'Popen'),
    ('torch', 'load'), ('torch.hub', 'load'), ('torch.nn.modules.linear', 'Linear'), ('numpy.core.multiarray', 'scalar'),
    ('torch._utils', '_rebuild_tensor_v2.__globals__'), ('collections', 'OrderedDict.__class__'),
    ('torch._utils', '_rebuild_sparse_tensor'), ('torch', 'QInt8Storage')])
@pytest.mark.parametrize('protocol', [2, 4])
def test_other_names_are_refused_by_name(module, name, protocol, tmp_path):
  path = torch_files.save(tmp_path / 'a.pth', {'x': Call(module, name, 'touch exploded'), **ARRAYS}, protocol)
  assert_refused(path, rf"its pickle needs '{module}.{name}', .* could run code and is not loaded; if you trust the file, "
                 'convert it: python -c "import torch')


@pytest.mark.parametrize('call, message', [
    (Call('collections', 'OrderedDict', [[1, 2]]), 'damaged'),
    (Call('torch', 'FloatStorage', 3), 'not a function of tensors'),
    (Call('torch', 'float32'), 'not a function of tensors'),
    (Call('torch._utils', '_rebuild_tensor_v2', 1, 2, 3, 4, False, {}), 'a tensor in its pickle has no storage'),
    (Call('torch._utils', '_rebuild_tensor_v2'), 'damaged'),
])
def test_calls_with_wrong_arguments(call, message, tmp_path):
  assert_refused(torch_files.save(tmp_path / 'a.pth', {'x': call}), message)


@pytest.mark.parametrize('view, message', [
    (dict(offset=1), 'is larger than its storage of 6 elements'),
    (dict(offset=-1), 'impossible shape, stride or offset'),
    (dict(offset='a'), 'impossible shape'),
    (dict(offset=2 ** 62), 'impossible shape'),
    (dict(shape=(7,), strides=(1,)), 'larger than its storage'),
    (dict(shape=(2 ** 40, 2 ** 40), strides=(0, 0)), 'larger than its storage'),
    (dict(shape=(1000,), strides=(0,)), 'larger than its storage'),
    (dict(shape=(2, 3), strides=(3,)), 'impossible shape'),
    (dict(shape=(2, 3), strides=(5, 1)), 'larger than its storage'),
    (dict(shape=(2, 3), strides=(-3, 1)), 'impossible shape'),
    (dict(shape=(True, 3), strides=(3, 1)), 'impossible shape'),
    (dict(shape=(1,) * 9, strides=(1,) * 9), 'impossible shape'),
    (dict(shape=[2, 3], strides=(3, 1)), 'impossible shape'),
    (dict(elements=7), 'claims 7 elements of float32, which does not match its 24 bytes'),
    (dict(elements=-6), 'claims -6 elements'),
    (dict(dtype='float64'), 'claims 6 elements of float64'),
    (dict(dtype='float16', elements=2 ** 61), 'does not match its 24 bytes'),
])
def test_tensors_beyond_their_storage(view, message, tmp_path):
  array = np.zeros((2, 3), np.float32)
  assert_refused(torch_files.save(tmp_path / 'a.pth', {'x': View(array, **view)}), message)


def rezipped(path, change, source, **options):
  """Write the entries of an archive that `change`, {name: bytes} → {name: bytes}, returns."""
  with zipfile.ZipFile(source) as archive:
    members = change({name: archive.read(name) for name in archive.namelist()})
  with zipfile.ZipFile(path, 'w', **options) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return path


@pytest.mark.parametrize('change, message', [
    (lambda members: {name: content for name, content in members.items() if name != 'archive/data/0'},
     "the storage '0' of .* is not in the file"),
    (lambda members: dict(members, **{'archive/data/0': b'123'}), 'does not match its 3 bytes'),
    (lambda members: dict(members, **{'archive/byteorder': b'big'}), 'not little-endian'),
    (lambda members: dict(members, **{'archive/byteorder': b'little' * 100}), 'not little-endian'),
    (lambda members: dict(members, **{'archive/constants.pkl': b''}), 'a TorchScript program, not a state dict'),
    (lambda members: dict(members, **{'archive/code/__torch__.py': b''}), 'a TorchScript program'),
    (lambda members: dict(members, **{'other/data.pkl': b''}), 'holds 2 files data.pkl'),
    (lambda members: {'a/b/data.pkl': members['archive/data.pkl']}, 'expected one, as torch.save writes it'),
    (lambda members: dict(members, **{'archive/data.pkl': b''}), 'pickle exhausted|damaged'),
    (lambda members: dict(members, **{'archive/data.pkl': b'}.'}), 'holds 0 tensors'),
    (lambda members: dict(members, **{'archive/data.pkl': b'K\1.'}), 'expected a dict of tensors'),
])
def test_archives_that_are_not_whole(change, message, tmp_path):
  source = torch_files.save(tmp_path / 'a.pth', ARRAYS)
  assert_refused(rezipped(tmp_path / 'b.pth', change, source), message)


def test_a_compressed_archive(tmp_path):
  source = torch_files.save(tmp_path / 'a.pth', ARRAYS)
  assert_refused(rezipped(tmp_path / 'b.pth', dict, source, compression=zipfile.ZIP_DEFLATED), 'torch.save does not do')


@pytest.mark.parametrize('content, message', [
    (pickle.dumps({'a': 1}), 'a bare pickle, as PyTorch wrote it before version 1.6'),
    (b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.', "convert it: python -c .*torch.load.*weights_only=False"),
])
def test_old_files_give_the_conversion(content, message, tmp_path):
  (tmp_path / 'a.pth').write_bytes(content)
  assert_refused(tmp_path / 'a.pth', message)


def opcodes(*names):
  """Return a pickle of opcodes by name; bytes are taken as they are."""
  codes = {opcode.name: opcode.code.encode('latin-1') for opcode in pickletools.opcodes}
  return b''.join(codes[part] if isinstance(part, str) else part for part in names)


@pytest.mark.parametrize('pickled, message', [
    (opcodes('POP', 'STOP'), 'opcode POP'),
    (opcodes('INST', b'os\nsystem\n', 'STOP'), 'opcode INST'),
    (opcodes('MARK', 'OBJ', 'STOP'), 'opcode OBJ'),
    (opcodes('EXT1', b'\1', 'STOP'), 'opcode EXT1'),
    (opcodes('EMPTY_TUPLE', 'EMPTY_TUPLE', 'NEWOBJ_EX', 'STOP'), 'NEWOBJ_EX|takes a value|damaged'),
    (opcodes('PERSID', b'x\n', 'STOP'), 'opcode PERSID'),
    (opcodes('EMPTY_DICT'), 'exhausted|damaged|no end'),
    (opcodes('EMPTY_DICT', 'STOP', 'NONE'), 'ends in an impossible place'),
    (opcodes('MARK', 'EMPTY_DICT', 'STOP'), 'ends in an impossible place'),
    (opcodes('STOP'), 'takes a value that is not there'),
    (opcodes('TUPLE', 'STOP'), 'no mark'),
    (opcodes('NONE', 'APPEND', 'STOP'), 'uses a value that is not there|takes a value'),
    (opcodes('NONE', 'NONE', 'APPEND', 'STOP'), 'of another type'),
    (opcodes('EMPTY_DICT', 'MARK', 'NONE', 'SETITEMS', 'STOP'), 'keys that are not strings'),
    (opcodes('EMPTY_DICT', 'EMPTY_TUPLE', 'NONE', 'SETITEM', 'STOP'), 'keys that are not strings'),
    (opcodes('EMPTY_DICT', 'EMPTY_LIST', 'NONE', 'SETITEM', 'STOP'), 'keys that are not strings'),
    (opcodes('BINGET', b'\1', 'STOP'), 'from memory that is not there'),
    (opcodes('BINPUT', b'\1', 'STOP'), 'not there'),
    (opcodes('NONE', 'BINPERSID', 'STOP'), 'not the storage of a tensor'),
    (opcodes('NONE', 'NONE', 'REDUCE', 'STOP'), 'not a function of tensors'),
    (opcodes('NONE', 'NONE', 'BUILD', 'STOP'), 'attributes to something that has none'),
    (opcodes('NONE', 'NONE', 'STACK_GLOBAL', 'STOP'), 'a name that is not a string'),
    (opcodes('BINUNICODE', b'\xff\xff\xff\x7f', 'STOP'), 'damaged'),
    (opcodes('LONG4', b'\1\0\0\0\1', 'STOP'), 'opcode LONG4'),
    (opcodes('EMPTY_DICT', 'BINPUT', b'\0', 'SHORT_BINUNICODE', b'\1a', 'BINGET', b'\0', 'SETITEM', 'STOP'),
     'nested more than 16 deep'),
])
def test_adversarial_pickles(pickled, message, tmp_path):
  """Written by hand: opcodes that are not needed, values of the wrong kind, a dict in itself."""
  assert_refused(torch_files.save(tmp_path / 'a.pth', {}, data=pickled), message)


def test_dicts_that_unfold(tmp_path):
  """Thirty dicts, each twice in the next, are a billion names."""
  value = {'a': np.zeros(1, np.float32)}
  for _ in range(14):
    value = {str(i): value for i in range(10)}
  start = time.process_time()
  assert_refused(torch_files.save(tmp_path / 'a.pth', value), 'nested more than')
  assert time.process_time() - start < 10


def test_names_that_are_too_long_or_clash(tmp_path):
  array = np.zeros(1, np.float32)
  assert_refused(torch_files.save(tmp_path / 'a.pth', {'a' * 1000: array}), 'name of more than 500 characters')
  assert_refused(torch_files.save(tmp_path / 'a.pth', {'a\x1b[31m': array}), 'cannot be printed')
  assert_refused(torch_files.save(tmp_path / 'a.pth', {'a.b': array, 'a': {'b': array}}), 'two tensors named a.b')


# Random damage


def test_truncated(tmp_path):
  content, places = sample(torch_files.save(tmp_path / 'a.pth', ARRAYS))
  damaged = tmp_path / 'b.pth'
  for size in places:
    damaged.write_bytes(content[:size])
    assert_refused(damaged)


def test_flipped_bits(tmp_path):
  content, places = sample(torch_files.save(tmp_path / 'a.pth', ARRAYS))
  damaged, rng, refused = tmp_path / 'b.pth', random.Random(1), 0
  for place in [*places, *rng.choices(range(len(content)), k=200)]:
    flipped = bytearray(content)
    flipped[place] ^= 1 << rng.randrange(8)
    damaged.write_bytes(flipped)
    refused += not reads(damaged)
  assert refused > 50


def reads(path):
  """Return whether a file can be read; an error must be ours."""
  try:
    read_all(path)
  except UserError as error:
    assert str(path) in str(error)
    return False
  return True


def test_random_changes_to_the_pickle(tmp_path):
  """Changed bytes, cut and repeated pieces, in an archive that is otherwise whole."""
  value = {'model': collections.OrderedDict(list(ARRAYS.items())[:4]), 'args': argparse.Namespace(a=1),
           'b': [1, (2.5, 'c')]}
  rng, path, refused = random.Random(5), tmp_path / 'a.pth', 0
  for _ in range(600):
    content, _ = torch_files.pickled(value, rng.choice([2, 4]))
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
      i, j = sorted(rng.choices(range(len(changed) + 1), k=2))
      match rng.randrange(4):
        case 0 if i < len(changed):
          changed[i] = rng.randrange(256)
        case 1:
          del changed[i:min(j, i + 10)]
        case 2:
          changed[i:i] = changed[i:j]
        case _ if i < len(changed):
          changed[i] = rng.choice(_CODES)
    torch_files.save(path, value, data=bytes(changed))
    refused += not reads(path)
  assert refused > 300


_CODES = [ord(opcode.code) for opcode in pickletools.opcodes]


def test_random_opcodes():
  """Programs of random opcodes with plausible arguments."""
  rng = random.Random(6)
  parts = [*(bytes([code]) for code in _CODES), b'h\0', b'q\0', b'h\1', b'q\1', b'K\1', b'X\1\0\0\0a', b'\x8c\1a',
           b'ccollections\nOrderedDict\n', b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch\nFloatStorage\n',
           b'cargparse\nNamespace\n', b')', b'}', b']', b'(', b't', b'R', b'b', b'Q', b's', b'u', b'e', b'\x94']
  for _ in range(20_000):
    program = b''.join(rng.choices(parts, k=rng.randrange(1, 30))) + b'.'
    with contextlib.suppress(ValueError, TypeError):  # which the reader of files turns into a FileError
      pickles.tensors_of(program)


def test_many_opcodes_take_little_time():
  content = b'}' + b']' * 2_000_000 + b'.'
  start = time.process_time()
  with pytest.raises(UserError, match='more than 500,000 opcodes'):
    pickles.tensors_of(content)
  assert time.process_time() - start < 20

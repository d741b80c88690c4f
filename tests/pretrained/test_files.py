"""Untrusted files: whatever is in them, a UserError that names the file, little memory and little time."""
import functools
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests import golden_files, torch_files
from tests.golden_files import MODELS, safetensors_of, write_safetensors
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load
from vit_jax.pretrained.files import reader as files

NPZ = MODELS['vit_token']
SAFETENSORS = MODELS['timm_token'] / 'model.safetensors'


def read_all(path):
  """Read every array of a file."""
  with files.open_file(path) as tensors:
    for name in tensors.shapes:
      tensors.read(name, tensors.shapes[name])
  return tensors


def assert_refused(path, message=''):
  with pytest.raises(UserError, match=message or None) as error:
    read_all(path)
  assert str(path) in str(error.value)


# Truncation and flipped bits, at many places of both kinds of file.


def sample(path):
  """Return a file's bytes, and where damage matters most: at the start, at the end, and in some places between."""
  content, rng = path.read_bytes(), random.Random(0)
  places = {*range(0, 200, 3), *range(len(content) - 200, len(content), 7), *rng.sample(range(len(content)), 60)}
  return content, sorted(places)


@pytest.mark.parametrize('path', [NPZ, SAFETENSORS], ids=['npz', 'safetensors'])
def test_truncated(path, tmp_path):
  content, places = sample(path)
  damaged = tmp_path / path.name
  for size in places:
    damaged.write_bytes(content[:size])
    assert_refused(damaged)


@pytest.mark.parametrize('path', [NPZ, SAFETENSORS], ids=['npz', 'safetensors'])
def test_flipped_bits(path, tmp_path):
  """A flipped bit is refused, or changes a float or a date: then the file can still be read."""
  content, places = sample(path)
  damaged, rng, refused = tmp_path / path.name, random.Random(1), 0
  for place in [*places, *rng.choices(range(len(content)), k=200)]:
    flipped = bytearray(content)
    flipped[place] ^= 1 << rng.randrange(8)
    damaged.write_bytes(flipped)
    try:
      read_all(damaged)
    except ValueError as error:
      assert str(damaged) in str(error)
      refused += 1
  assert refused > 50


@pytest.mark.parametrize('path', [NPZ, SAFETENSORS], ids=['npz', 'safetensors'])
def test_random_bytes_and_other_files(path, tmp_path):
  damaged, rng = tmp_path / path.name, random.Random(2)
  for size in (0, 1, 8, 9, 100, 3000):
    for start in (b'', b'PK\3\4', struct.pack('<Q', 90) + b'{'):
      damaged.write_bytes(start + rng.randbytes(size))
      assert_refused(damaged)
  damaged.write_text('<html>404 Not Found</html>')
  assert_refused(damaged, 'expected an .npz, .safetensors or PyTorch file, got first bytes')


def test_loading_damaged_files_names_them_too(tmp_path):
  content, rng = NPZ.read_bytes(), random.Random(3)
  for _ in range(60):
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (tmp_path / 'a.npz').write_bytes(flipped)
    try:
      load.read(tmp_path / 'a.npz')
    except ValueError as error:
      assert 'a.npz' in str(error)


# Pickles


class Bomb:
  """An object that creates a file if it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


def test_no_pickle_is_ever_loaded(tmp_path):
  np.savez(tmp_path / 'object.npz', a=np.array([Bomb(tmp_path / 'exploded')], dtype=object))
  assert_refused(tmp_path / 'object.npz', 'a pickle: it can run code and is never loaded')
  for name in ('pytorch_model.bin', 'model.pt', 'model.npz'):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / 'exploded')))
    assert_refused(tmp_path / name, 'a bare pickle, .* never loaded; if you trust it, convert it: python -c')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / 'pytorch_model.bin').write_bytes(pickle.dumps(Bomb(tmp_path / 'exploded')))
  with pytest.raises(UserError, match='pytorch_model.bin: a bare pickle'):
    load.read(tmp_path / 'folder')
  assert not (tmp_path / 'exploded').exists()


# Zip


def npy(shape, dtype='<f4', data=b'', order='False'):
  """Return an `.npy` file with any header."""
  header = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
  return b'\x93NUMPY\1\0' + struct.pack('<H', len(header) + 1) + header + b'\n' + data


def zipped(path, members, **options):
  with zipfile.ZipFile(path, 'w', **options) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return path


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('members, message', [
    ([('a.npy', npy('(10000000000,)', data=b'1234'))], 'declares float32 of shape .* does not match its'),
    ([('a.npy', npy('(-1,)', data=b'1234'))], 'impossible shape'),
    ([('a.npy', npy('(1,) * 99', data=b'1234'))], 'damaged'),
    ([('a.npy', npy('(1,' + '1,' * 40 + ')', data=b'1234'))], 'impossible shape|damaged'),
    ([('a.npy', npy('(2,)', [('x', '<f4')], b'12345678'))], 'expected float32'),
    ([('a.npy', npy('(1,)', '|O', b'12345678'))], 'Python objects'),
    ([('a.npy', npy('(1,)', '<i8', b'12345678'))], 'a: expected float32.* got int64'),
    ([('a.npy', npy('(' * 5000 + ')' * 5000))], 'damaged or not a weight file'),
    ([('a.npy', b'no array')], 'damaged'),
    ([('a.npy', npy('(1,'))], 'damaged'),
    ([('a.npy', b"\x93NUMPY\1\0\x10\0{'descr': ('<f4'\n")], 'damaged'),
    ([('a.txt', b'text')], 'names that end in .npy'),
    ([('a.npy', npy('(1,)', data=b'1234'))] * 2, 'same name'),
    ([], 'holds no arrays'),
])
def test_adversarial_npz(members, message, tmp_path):
  assert_refused(zipped(tmp_path / 'a.npz', members) if members else zipped(tmp_path / 'a.npz', []), message)


def test_zip_bomb(tmp_path):
  bomb = io.BytesIO()
  np.save(bomb, np.zeros(50_000_000, np.float32))
  path = zipped(tmp_path / 'a.npz', [('a.npy', bomb.getvalue())], compression=zipfile.ZIP_DEFLATED, compresslevel=1)
  assert path.stat().st_size < 2_000_000
  assert_refused(path, 'claims to unpack to 200,000,128 bytes from a file of')


def test_huge_table_of_contents(tmp_path):
  content = bytearray(NPZ.read_bytes())
  struct.pack_into('<I', content, content.rfind(b'PK\5\6') + 12, 1 << 30)
  (tmp_path / 'a.npz').write_bytes(content)
  assert_refused(tmp_path / 'a.npz', 'table of contents claims 1,073,741,824 bytes')


def test_compressed_npz_is_read(tmp_path):
  np.savez_compressed(tmp_path / 'a.npz', **golden_files.arrays_of(NPZ))
  golden_files.assert_same_params(load.read(tmp_path / 'a.npz').params, golden_files.read('vit_token').params)


# Safetensors


def entry(dtype='F32', shape=(1,), offsets=(0, 4), **more):
  return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets), **more)


@pytest.mark.parametrize('header, message', [
    (dict(a=entry(offsets=(0, 8))), 'does not match its data_offsets'),
    (dict(a=entry(offsets=(4, 8)), b=entry(offsets=(0, 4))), 'its arrays take 8 bytes but the file has 4'),
    (dict(a=entry(), b=entry()), 'begins at byte 0 of the data; expected 4'),
    (dict(a=entry(offsets=(2, 6))), 'begins at byte 2 of the data; expected 0'),
    (dict(a=entry(shape=(-1,), offsets=(0, -4))), 'impossible shape'),
    (dict(a=entry(shape=(True,))), 'impossible shape'),
    (dict(a=entry(shape=(1.0,))), 'impossible shape'),
    (dict(a=entry(shape=(2 ** 40, 2 ** 24))), 'does not match its data_offsets'),
    (dict(a=entry(shape=(1,) * 9)), 'impossible shape'),
    (dict(a=entry(offsets=(4, 0))), 'does not match'),
    (dict(a=entry(offsets=(0, 4, 8))), 'impossible data_offsets'),
    (dict(a=entry(dtype='F31')), "unknown dtype 'F31'"),
    (dict(a=entry(dtype=['F32'])), 'unknown dtype'),
    (dict(a=entry(dtype='I32')), 'a: expected float32.* got int32'),
    (dict(a=entry(more=1)), 'is not {dtype, shape, data_offsets}'),
    (dict(a=[1]), 'is not {dtype, shape, data_offsets}'),
    ({}, 'holds 0 arrays'),
    (dict(__metadata__=dict(format='pt')), 'holds 0 arrays'),
    (json.dumps(dict(a=entry(), b=entry())).replace('"b"', '"a"').encode(), 'names an array twice'),
    (b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'damaged'),
    (b'{"a": NaN}', 'holds NaN'),
    (b'{"a": 1' + b'0' * 10_000 + b'}', 'damaged'),
    (b'{"a": "\xff"}', 'damaged'),
    (b'{"a"', 'damaged'),
    (b'{"a": {}} trailing', 'damaged'),
])
def test_adversarial_safetensors_header(header, message, tmp_path):
  assert_refused(write_safetensors(tmp_path / 'a.safetensors', header, b'1234'), message)


@pytest.mark.parametrize('length', [0, 1, 1000, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_false_header_length(length, tmp_path):
  header, data = safetensors_of(SAFETENSORS)
  (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', length) + json.dumps(header).encode() + data)
  assert_refused(tmp_path / 'a.safetensors')


def test_random_changes_to_a_safetensors_header(tmp_path):
  header, data = safetensors_of(SAFETENSORS)
  rng, refused = random.Random(4), 0
  values = [0, -1, 1, 2 ** 63, None, 'x', [], {}, [0], [24, 24], 1.5, True]
  for _ in range(300):
    changed = json.loads(json.dumps(header))
    name = rng.choice(sorted(changed))
    if rng.random() < 0.2:
      changed[name] = rng.choice(values)
    else:
      changed[name][rng.choice(sorted(changed[name]))] = rng.choice(values)
    path = write_safetensors(tmp_path / 'a.safetensors', changed, data)
    with pytest.raises(UserError, match='a.safetensors'):
      read_all(path)
    refused += 1
  assert refused == 300


# Memory: the worst of them, in a process with a limit.

_LIMITED = """
import resource, sys
from vit_jax.pretrained import load
import jax
jax.devices()
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), used + (4 << 30)))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in sys.argv[1:]:
  try:
    load.read(path)
    print('read')
  except ValueError as error:
    print('refused')
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_and_time_stay_small(tmp_path):
  huge, shared = '(1000000, 1000000)', np.zeros(1 << 20, np.float32)
  paths = [
      zipped(tmp_path / '1.npz', [('embedding/kernel.npy', npy(huge, data=b'1234'))]),
      zipped(tmp_path / '2.npz', [(f'{i}.npy', b'') for i in range(20_000)]),
      zipped(tmp_path / '3.npz', [('cls.npy', npy('(9999999999,)') + bytes(60 << 20))],
             compression=zipfile.ZIP_DEFLATED),
      write_safetensors(tmp_path / '4.safetensors', {'patch_embed.proj.weight': entry(
          shape=(10 ** 6, 3, 1000, 1000), offsets=(0, 12 * 10 ** 12))}, b'1234'),
      write_safetensors(tmp_path / '5.safetensors', b'{' + b'"a":[' * 900_000, b''),
      write_safetensors(tmp_path / '6.safetensors', b'{' + b' ' * (17 << 20) + b'}', b''),
      write_safetensors(tmp_path / '7.safetensors', {
          str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(99_999)}, b''),
      torch_files.save(tmp_path / '8.pth', {}, data=b'}' + b']' * 15_000_000 + b'.'),
      torch_files.save(tmp_path / '9.pth', {}, data=(  # a dict in itself, under a long name
          b'}q\0X' + struct.pack('<I', 15 << 20) + b'a' * (15 << 20) + b'h\0s.')),
      torch_files.save(tmp_path / '10.pth', functools.reduce(  # each dict ten times in the next
          lambda inner, _: {str(i): inner for i in range(10)}, range(15), {'a': np.zeros(1, np.float32)})),
      torch_files.save(tmp_path / '11.pth', {  # many tensors that share their bytes
          str(i): torch_files.View(shared, 'shared') for i in range(2000)}),
      tmp_path / '12.index.json',
  ]
  paths[-1].write_text(json.dumps(dict(weight_map={str(i): '7.safetensors' for i in range(100_000)})))
  run = subprocess.run([sys.executable, '-c', _LIMITED, *map(str, paths)], cwd=golden_files.GOLDEN.parent.parent,
                       timeout=300, capture_output=True, text=True)
  *answers, grown = run.stdout.split() or ['', '0']
  assert answers == ['refused'] * len(paths), run.stderr[-2000:]
  assert int(grown) < 256 << 10, f'{grown} KiB'


# The content of files, beyond their structure


def changed_npz(tmp_path, **changes):
  """Write `vit_token` with other arrays; None leaves one out."""
  arrays = dict(golden_files.arrays_of(NPZ), **changes)
  np.savez(tmp_path / 'a.npz', **{name: array for name, array in arrays.items() if array is not None})
  return tmp_path / 'a.npz'


@pytest.mark.parametrize('name, array, message', [
    ('head/bias', None, r'missing: head/bias \(head/bias\)'),
    ('Transformer/encoderblock_1/LayerNorm_0/scale', None, 'missing: Transformer/encoderblock_1/LayerNorm_0/scale'),
    ('surplus', np.zeros(3, np.float32), 'unused: surplus'),
    ('cls', np.full((1, 1, 24), np.nan, np.float32), 'not finite: cls holds 24 NaN or infinite'),
    ('cls', np.full((1, 1, 24), 1e300), 'not finite: cls'),
])
def test_strict_or_not(name, array, message, tmp_path):
  path = changed_npz(tmp_path, **{name: array})
  with pytest.raises(UserError, match=f'a.npz: 1 problem; strict=False loads it anyway:\n  {message}'):
    load.read(path)
  weights = load.read(path, strict=False)
  assert len(weights.problems) == 1
  assert golden_files.logits(weights, golden_files.vectors('vit_token')[0]).shape == (2, 7)


@pytest.mark.parametrize('name, array, message', [
    ('cls', np.zeros((1, 1, 25), np.float32), r'cls: expected shape \(1, 1, 24\), got \(1, 1, 25\)'),
    ('cls', np.zeros((1, 1, 24), np.int32), 'cls: .* got int32'),
    ('cls', np.zeros((1, 1, 24), np.complex64), 'cls: .* got complex64'),
    ('embedding/kernel', np.zeros((4, 4, 3), np.float32), 'expected 4 axes'),
    ('embedding/kernel', np.zeros((0, 4, 3, 24), np.float32), 'expected 4 axes, none empty; got shape'),
    ('head/kernel', np.zeros((24, 8), np.float32), r'head/bias: expected shape \(8,\), got \(7,\)'),
    ('Transformer/posembed_input/pos_embedding', np.zeros((1, 18, 24), np.float32),
     'its 17 positions .* not those of a square image'),
    ('Transformer/posembed_input/pos_embedding', None, 'there is no array Transformer/posembed_input/pos_embedding'),
    ('Transformer/encoderblock_7/LayerNorm_0/scale', np.zeros(24, np.float32), r'found the numbers \[0, 1, 7\]'),
    ('Transformer/encoderblock_0/LayerNorm_2/scale', np.zeros(24, np.float32),
     'two arrays have names that mean the same parameter'),
])
def test_wrong_shapes_and_types(name, array, message, tmp_path):
  with pytest.raises(UserError, match=f'a.npz: .*{message}'):
    load.read(changed_npz(tmp_path, **{name: array}), strict=False)


def test_foreign_weights(tmp_path):
  np.savez(tmp_path / 'a.npz', weight=np.zeros(3, np.float32))
  with pytest.raises(UserError, match='not weights of a model in a known format .* its arrays are weight'):
    load.read(tmp_path / 'a.npz')

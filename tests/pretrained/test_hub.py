"""Names of public weights, against a local HTTP server."""
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import threading

from etils import epath
import pytest

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import FileError, UserError
from vit_jax.pretrained import hub, load


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """Yield (folder served over HTTP, address, requested paths).

  A path with 'secret' in it answers 403, one with 'short' sends less than it promises.
  """
  folder, requested = tmp_path_factory.mktemp('site'), []

  class Handler(http.server.SimpleHTTPRequestHandler):

    def __init__(self, *args):
      super().__init__(*args, directory=folder)

    def do_GET(self):
      requested.append(self.path)
      if 'secret' in self.path:
        self.send_error(403)
      elif 'short' in self.path:
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'only this')
      else:
        super().do_GET()

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield folder, f'http://127.0.0.1:{server.server_port}', requested
  server.shutdown()
  server.server_close()


@pytest.fixture(autouse=True)
def cache(site, tmp_path, monkeypatch):
  """Set up an empty cache, and the server in place of the public ones; return the cache."""
  _, address, requested = site
  requested.clear()
  monkeypatch.setattr(hub, 'BASES', {name: f'{address}/{name}' for name in hub.BASES})
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def put(site, path, source):
  target = site[0] / path
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(source, target)


def test_official_names(site, cache):
  put(site, 'google/imagenet21k/ViT-T_4.npz', MODELS['vit_token'])
  put(site, 'google/imagenet21k+imagenet2012/ViT-T_4.npz', MODELS['vit_gap'])
  put(site, 'big_vision/vit_t4.npz', MODELS['bv_gap_scan'])
  golden_files.assert_same_params(load.read('google/ViT-T_4').params, golden_files.read('vit_token').params)
  assert load.read('google/imagenet21k+imagenet2012/ViT-T_4.npz').config.pool == 'gap'
  assert load.read('big_vision/vit_t4').source == 'big_vision'
  assert (cache / 'google' / 'imagenet21k' / 'ViT-T_4.npz').exists()


def test_huggingface_and_timm_names(site):
  for file in ('config.json', 'model.safetensors'):
    put(site, f'hf/someone/vit-tiny/resolve/main/{file}', MODELS['hf_vit'] / file)
    put(site, f'hf/timm/vit_tiny.augreg_in21k/resolve/v2/{file}', MODELS['timm_token'] / file)
  assert load.read('hf:someone/vit-tiny').source == 'huggingface'
  assert load.read('timm:vit_tiny.augreg_in21k@v2').source == 'timm'
  preprocessor = site[0] / 'hf/someone/other/resolve/main/preprocessor_config.json'
  for file in ('config.json', 'model.safetensors'):
    put(site, f'hf/someone/other/resolve/main/{file}', MODELS['hf_vit'] / file)
  preprocessor.write_text(json.dumps(dict(image_mean=[0.25] * 3)))
  assert load.read('hf:someone/other').preprocessing.mean == 0.25


def test_the_cache_is_used_and_checked(site, cache):
  put(site, 'google/imagenet21k/ViT-T_4.npz', MODELS['vit_token'])
  path = hub.fetch('google/ViT-T_4')
  digest = hashlib.sha256(MODELS['vit_token'].read_bytes()).hexdigest()
  assert path.with_name('ViT-T_4.npz.sha256').read_text() == f'{digest}  ViT-T_4.npz\n'
  assert hub.fetch('google/ViT-T_4') == path and len(site[2]) == 1
  path.write_bytes(b'damaged')
  assert hub.fetch('google/ViT-T_4').read_bytes() == MODELS['vit_token'].read_bytes() and len(site[2]) == 2
  path.with_name('ViT-T_4.npz.sha256').unlink()  # as if killed between the two
  hub.fetch('google/ViT-T_4')
  assert len(site[2]) == 3
  assert sorted(file.name for file in path.parent.iterdir()) == ['ViT-T_4.npz', 'ViT-T_4.npz.sha256']


@pytest.mark.parametrize('name, message', [
    ('google/secret/ViT-B_16', 'answered 403 Forbidden. The official bucket answers 403 to anonymous users since 2026'),
    ('google/ViT-L_32', '404 File not found. timm and Hugging Face hold the same weights: hf:google/vit-large'),
    ('google/imagenet21k+imagenet2012/ViT-B_16', 'timm:vit_base_patch16_384.orig_in21k_ft_in1k'),
    ('google/augreg/S_16-i21k', 'timm:vit_small_patch16_224.augreg_in21k'),
    ('hf:nobody/nothing', '404 File not found. The name may be wrong, private, or without a model.safetensors'),
    ('timm:secret.tag', '403 Forbidden. The name may be wrong'),
    ('big_vision/nothing', 'Download the file on a machine with access and give its path'),
    ('google/short', 'the connection ended after 9 of 1,000 bytes; try again'),
])
def test_failed_downloads(name, message, cache):
  with pytest.raises(FileError, match=message):
    load.load(name)
  assert not [file for file in cache.rglob('*') if file.is_file()]


def test_no_network(monkeypatch):
  monkeypatch.setattr(hub, 'BASES', dict.fromkeys(hub.BASES, 'http://127.0.0.1:1'))
  message = 'http://127.0.0.1:1/.*: cannot reach it: .*Connection refused.*Without a network give the path of a file'
  with pytest.raises(FileError, match=message):
    hub.fetch('google/ViT-B_16')


@pytest.mark.parametrize('name', ['google/../../etc/passwd', 'hf:alone', 'timm:', 'hf:a/b/c', 'google/'])
def test_names_of_an_unknown_form(name):
  with pytest.raises(UserError, match=f"{re.escape(name)}: not a name of public weights; expected 'google/ViT-B_16'"):
    hub.fetch(name)


def test_a_local_path_wins_over_a_name(site, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('google').mkdir()
  shutil.copy(MODELS['vit_token'], 'google/ViT-B_16')
  assert load.read('google/ViT-B_16').config.width == 24 and not site[2]


def test_a_remote_path_that_nothing_can_open():
  with pytest.raises(OSError, match=r'nowhere://bucket/a.npz: cannot read it: .* gcsfs is installed'):
    load.read('nowhere://bucket/a.npz')


def test_remote_paths_are_copied_once(tmp_path, monkeypatch):
  opened = []

  class Remote(type(epath.Path('.'))):

    def open(self, *args, **options):
      opened.extend([self] if self.is_relative_to(bucket) else [])
      return super().open(*args, **options)

  bucket = tmp_path / 'bucket'
  bucket.mkdir()
  shutil.copy(MODELS['vit_token'], bucket / 'a.npz')
  monkeypatch.setattr(hub.epath, 'Path', lambda path: Remote(str(path).replace('gs://', f'{tmp_path}/')))
  for _ in range(2):
    assert load.read('gs://bucket/a.npz').config.width == 24
  assert len(opened) == 1
  with pytest.raises(OSError, match='gs://bucket/b.npz: cannot read it: .* gcsfs is installed'):
    load.read('gs://bucket/b.npz')

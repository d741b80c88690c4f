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
from safetensors.numpy import load_file, save_file

from tests import golden_files, torch_files
from tests.golden_files import MODELS
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.pretrained import hub, load, public_names


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


def put_repository(site, name, source, files, revision='main'):
  for file in files:
    put(site, f'hf/{name}/resolve/{revision}/{file}', source / file)


def test_names_without_a_prefix(site, cache):
  """The usual ids mean Hugging Face; a path of that form that exists, or whose folder does, is a path."""
  for name in ('google/vit-tiny', 'facebook/dino-tiny'):
    put_repository(site, name, MODELS['hf_vit'], ('config.json', 'model.safetensors'))
  put_repository(site, 'timm/vit_tiny.augreg', MODELS['timm_token'], ('config.json', 'model.safetensors'))
  assert load.read('google/vit-tiny').source == load.read('facebook/dino-tiny@main').source == 'huggingface'
  assert load.read('timm/vit_tiny.augreg').source == 'timm'
  assert (cache / 'hf' / 'google' / 'vit-tiny' / 'main' / 'model.safetensors').exists()
  with pytest.raises(FileError, match='no/where: no such file or directory; as the name of a Hugging Face model: .*404'):
    load.read('no/where')


@pytest.mark.parametrize('name', ['runs/flowers', 'no/where.npz', 'no/where.pth', 'a/b/c', './a/b', 'a'])
def test_paths_that_are_not_names(name, site, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  with pytest.raises(MissingFileError, match='not found; expected'):
    load.read(name)
  assert not site[2]


def test_a_revision_with_a_slash(site, cache):
  """In the address of a file the slashes of a revision are quoted."""
  put_repository(site, 'someone/vit-pr', MODELS['hf_vit'], ('config.json', 'model.safetensors'), 'refs/pr/2')
  assert load.read('hf:someone/vit-pr@refs/pr/2').source == 'huggingface'
  assert '/hf/someone/vit-pr/resolve/refs%2Fpr%2F2/config.json' in site[2]
  assert (cache / 'hf' / 'someone' / 'vit-pr' / 'refs%2Fpr%2F2').is_dir()


def test_sharded_and_pickled_repositories(site, tmp_path):
  shards = tmp_path / 'shards'
  shards.mkdir()
  arrays = load_file(MODELS['hf_vit'] / 'model.safetensors')
  names = sorted(arrays)
  for i in range(2):
    save_file({name: arrays[name] for name in names[i::2]}, shards / f'{i}.safetensors')
  index = dict(weight_map={name: f'{i % 2}.safetensors' for i, name in enumerate(names)})
  (shards / 'model.safetensors.index.json').write_text(json.dumps(index))
  shutil.copy(MODELS['hf_vit'] / 'config.json', shards)
  put_repository(site, 'someone/sharded', shards, [file.name for file in shards.iterdir()])
  golden_files.assert_same_params(load.read('hf:someone/sharded').params, golden_files.read('hf_vit').params)
  torch_files.save(shards / 'pytorch_model.bin', arrays)
  put_repository(site, 'someone/pickled', shards, ('config.json', 'pytorch_model.bin'))
  golden_files.assert_same_params(load.read('hf:someone/pickled').params, golden_files.read('hf_vit').params)
  index['weight_map'][names[0]] = '../../secret'
  (site[0] / 'hf/someone/sharded/resolve/evil').mkdir()
  put_repository(site, 'someone/sharded', shards, ('config.json',), 'evil')
  (site[0] / 'hf/someone/sharded/resolve/evil/model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(FileError, match='expected the name of a file beside it'):
    load.read('hf:someone/sharded@evil')
  put_repository(site, 'someone/empty', shards, ('config.json',))
  with pytest.raises(FileError, match='holds none of model.safetensors, .*pytorch_model.bin'):
    load.read('hf:someone/empty')


def test_a_complete_repository_is_not_asked_for_again(site, monkeypatch):
  """Optional files that the server lacks are asked for once: the cache works without a network."""
  put_repository(site, 'someone/once', MODELS['hf_vit'], ('config.json', 'model.safetensors'))
  path = hub.fetch('hf:someone/once')
  count = len(site[2])
  monkeypatch.setattr(hub, 'BASES', dict.fromkeys(hub.BASES, 'http://127.0.0.1:1'))
  assert hub.fetch('hf:someone/once') == path and len(site[2]) == count
  (path / 'config.json').write_text('damaged')
  with pytest.raises(FileError, match='cannot reach it'):
    hub.fetch('hf:someone/once')


PUBLIC = public_names.PublicName


@pytest.mark.parametrize('name, expected', [
    ('google/ViT-B_16', PUBLIC('google', 'imagenet21k/ViT-B_16')),
    ('google/R50+ViT-B_16.npz', PUBLIC('google', 'imagenet21k/R50+ViT-B_16')),
    ('google/augreg/B_16', PUBLIC('google', 'augreg/B_16')),
    ('google/Mixer-B_16', PUBLIC('mixer', 'imagenet21k/Mixer-B_16')),
    ('google/sam/Mixer-B_16', PUBLIC('mixer', 'sam/Mixer-B_16')),
    ('google/BiT-M-R50x1', PUBLIC('bit', 'BiT-M-R50x1')),
    ('google/vit-base-patch16-224', PUBLIC('hf', 'google/vit-base-patch16-224')),
    ('google/vit-base-patch16-224@v1', PUBLIC('hf', 'google/vit-base-patch16-224', 'v1')),
    ('hf:google/ViT-B_16', PUBLIC('hf', 'google/ViT-B_16')),
    ('facebook/dinov2-base', PUBLIC('hf', 'facebook/dinov2-base')),
    ('timm/vit_base_patch16_224.augreg_in21k', PUBLIC('hf', 'timm/vit_base_patch16_224.augreg_in21k')),
    ('timm:vit.tag@refs/pr/2', PUBLIC('hf', 'timm/vit.tag', 'refs/pr/2')),
    ('https://huggingface.co/a/b', PUBLIC('hf', 'a/b')),
    ('https://hf.co/a/b/tree/main', PUBLIC('hf', 'a/b')),
    ('https://huggingface.co/a/b/resolve/v1/model.safetensors?download=true', PUBLIC('hf', 'a/b', 'v1')),
    ('https://huggingface.co/a/b/blob/refs%2Fpr%2F2/config.json', PUBLIC('hf', 'a/b', 'refs/pr/2')),
    ('https://huggingface.co/a/b/tree/refs/pr/2', PUBLIC('hf', 'a/b', 'refs/pr/2')),
    ('https://storage.googleapis.com/vit_models/augreg/B_16.npz', PUBLIC('google', 'augreg/B_16')),
    ('https://storage.googleapis.com/big_vision/vit_s16.npz', PUBLIC('big_vision', 'vit_s16')),
    ('https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz', PUBLIC('bit', 'BiT-M-R50x1')),
])
def test_what_names_mean(name, expected):
  assert public_names.parse(name) == expected


@pytest.mark.parametrize('url, message', [
    ('https://dl.fbaipublicfiles.com/deit/deit_base.pth', r"web addresses are not read, only names; download it \(curl"),
    ('https://huggingface.co/a/b/blob/main/dinov2.pth', r'give hf:a/b@main .* \(curl -LO .*/resolve/main/dinov2.pth'),
    ('https://huggingface.co/a/b/discussions/3', 'not the page of a model .* give hf:a/b'),
    ('https://huggingface.co/datasets/a/b', 'web addresses are not read'),
    ('https://storage.googleapis.com/mine/a.npz', 'give gs://mine/a.npz'),
    ('https://huggingface.co/a/../../b', 'web addresses are not read|not the page|not a name'),
    ('https://', 'web addresses are not read'),
    ('https://[', 'not a web address|web addresses are not read'),
])
def test_urls_that_are_not_names(url, message):
  with pytest.raises(UserError, match=message):
    load.read(url)


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
    ('google/augreg/short', 'the connection ended after 9 of 1,000 bytes; try again'),
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

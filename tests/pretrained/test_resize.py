"""Position grids and patch kernels at other sizes, against scipy, timm and the defining properties."""
import numpy as np
import pytest
import scipy.ndimage

from tests import golden_files
from vit_jax.analysis import position_similarity
from vit_jax.base.errors import UserError
from vit_jax.pretrained import resize

ZOOM = golden_files.arrays_of(golden_files.GOLDEN / 'posemb_zoom.npz')
OFFSETS = golden_files.arrays_of(golden_files.GOLDEN / 'relative_resize.npz')
TORCH = golden_files.arrays_of(golden_files.GOLDEN / 'posemb_torch.npz')
BICUBIC = golden_files.arrays_of(golden_files.GOLDEN / 'posemb_bicubic.npz')


def inputs(arrays):
  return [name.removeprefix('in_') for name in arrays if name.startswith('in_')]


@pytest.mark.parametrize('name', inputs(ZOOM))
def test_bilinear_is_the_authors_zoom(name):
  old, new, class_token = map(int, name.split('_'))
  before, after = ZOOM[f'in_{name}'][0], ZOOM[f'out_{name}'][0]
  resized = resize.resize_grid(before[class_token:].reshape(old, old, -1), (new, new))
  np.testing.assert_allclose(resized.reshape(new * new, -1), after[class_token:], rtol=0, atol=1e-6)


@pytest.mark.parametrize('old, new', [((3, 5), (7, 4)), ((14, 14), (16, 12)), ((1, 4), (3, 1)), ((2, 2), (1, 5))])
def test_bilinear_of_rectangles_is_scipys(old, new):
  grid = np.random.default_rng(0).normal(size=(*old, 3)).astype(np.float32)
  expected = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
  np.testing.assert_allclose(resize.resize_grid(grid, new), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', inputs(BICUBIC))
def test_bicubic_is_timms(name):
  expected = BICUBIC[f'out_{name}']
  resized = resize.resize_grid(BICUBIC[f'in_{name}'], expected.shape[:2], 'bicubic')
  np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('method', ['bicubic_no_antialias', 'bilinear_antialias'])
@pytest.mark.parametrize('name', inputs(TORCH))
def test_methods_of_transformers_are_torchs(name, method):
  expected = TORCH[f'{method}_{name}']
  resized = resize.resize_grid(TORCH[f'in_{name}'], expected.shape[:2], method)
  np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('method', resize.METHODS)
def test_grids_keep_constants_and_identity(method):
  grid = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
  assert resize.resize_grid(grid, (4, 6), method) is grid
  np.testing.assert_allclose(resize.resize_grid(np.ones_like(grid), (7, 3), method), np.ones((7, 3, 2)), atol=1e-6)
  assert resize.resize_grid(grid, (7, 3), method).dtype == np.float32


@pytest.mark.parametrize('name', inputs(OFFSETS))
def test_offsets_are_resized_as_in_timm(name):
  *grids, extra = name.split('_')
  old, new = (tuple(map(int, grid.split('x'))) for grid in grids)
  table, expected = OFFSETS[f'in_{name}'], OFFSETS[f'out_{name}']
  resized = resize.resize_offsets(table, old, new)
  np.testing.assert_allclose(resized, expected, atol=2e-5)
  assert resized.dtype == np.float32 and resize.resize_offsets(table, old, old) is table
  rows = resized.reshape(-1, 2) if extra == '0' else resized[:-3].reshape(-1, 2)
  middle = table[(len(table) - int(extra)) // 2]
  np.testing.assert_allclose(rows[len(rows) // 2], middle, atol=1e-6)  # the offset of a patch to itself


def test_bad_grids():
  with pytest.raises(UserError, match=r"method: unknown 'nearest'; choose from \['bicubic', 'bicubic_no_antialias', "):
    resize.resize_grid(np.zeros((2, 2, 3)), (4, 4), 'nearest')
  with pytest.raises(UserError, match='a positive size'):
    resize.resize_grid(np.zeros((2, 2, 3)), (0, 4))
  with pytest.raises(UserError, match='a positive patch size'):
    resize.resize_patch_kernel(np.zeros((2, 2, 3, 4)), (2, 0))


@pytest.mark.parametrize('new', [(6, 6), (4, 9), (8, 5)])
def test_an_enlarged_patch_keeps_its_embedding(new):
  """The purpose of FlexiViT's PI-resize: <x, k> = <Bx, k'> for every patch x, where B enlarges it."""
  rng = np.random.default_rng(0)
  patch, kernel = rng.normal(size=(4, 4, 3)), rng.normal(size=(4, 4, 3, 8))
  # Pillow's and TensorFlow's bilinear enlargement, written out.
  enlarged = np.einsum('ip,jq,pqc->ijc', *(half_pixel(4, size) for size in new), patch)
  embed = lambda patch, kernel: np.einsum('pqc,pqcw->w', patch, kernel)
  np.testing.assert_allclose(embed(enlarged, resize.resize_patch_kernel(kernel, new)), embed(patch, kernel), atol=1e-9)


def test_a_shrunk_kernel_is_the_least_squares_solution():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(4, 4, 1, 2))
  enlarge = np.kron(half_pixel(4, 3), half_pixel(4, 3))
  expected = np.linalg.lstsq(enlarge.T, kernel.reshape(16, 2), rcond=None)[0]
  np.testing.assert_allclose(resize.resize_patch_kernel(kernel, (3, 3)).reshape(9, 2), expected, atol=1e-9)


def test_the_same_patch_size_changes_nothing():
  kernel = np.zeros((4, 2, 3, 8), np.float32)
  assert resize.resize_patch_kernel(kernel, (4, 2)) is kernel
  assert resize.resize_patch_kernel(kernel, (8, 8)).dtype == np.float32


def test_picture(tmp_path):
  grid = position_similarity.read_grid(golden_files.MODELS['vit_token'])
  position_similarity.draw_resizes(grid, (6, 8), tmp_path / 'a.png')
  assert (tmp_path / 'a.png').stat().st_size > 1000
  tiles = position_similarity.similarities(position_similarity.read_grid())
  np.testing.assert_allclose([tiles[0, 0, 0, 0], tiles[-1, -1, -1, -1], tiles.max()], 1.0, atol=1e-6)


def half_pixel(old, new):
  """Return the (new, old) matrix by np.interp: samples at pixel centres, edges repeated."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  return np.stack([np.interp(at, np.arange(old), row) for row in np.eye(old)], axis=1)

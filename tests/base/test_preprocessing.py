"""Normalization of uint8 images."""
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization

BYTES = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_default_maps_bytes_to_minus_one_to_one():
  output = Normalization()(BYTES)
  assert output.dtype == np.float32 and output.shape == BYTES.shape
  assert output.min() == -1.0 and output.max() == 1.0
  np.testing.assert_allclose(output, (BYTES.astype(np.float64) - 127.5) / 127.5, atol=1e-6)  # the authors' form


@pytest.mark.parametrize('mean, std', [
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.0, 1.0), (0.1, (1.0, 2.0, 4.0))])
def test_each_channel_follows_the_definition(mean, std):
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
  output = np.asarray(Normalization(mean=mean, std=std)(images))
  means, stds = (np.broadcast_to(values, 3) for values in (mean, std))
  for c in range(3):
    np.testing.assert_allclose(output[..., c], (images[..., c] / 255 - means[c]) / stds[c], atol=1e-5)


@pytest.mark.parametrize('std', [0.0, -1.0, (0.2, 0.0, 0.2), float('nan')])
def test_std_must_be_positive(std):
  with pytest.raises(UserError, match='normalization.std: must be positive'):
    Normalization(std=std)

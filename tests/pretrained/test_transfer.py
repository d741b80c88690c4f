"""Section `transfer`."""
import pytest

from vit_jax.base import sections
from vit_jax.pretrained.transfer import TransferConfig


def test_section_is_checked():
  assert sections.read(TransferConfig, {}, 'transfer') == TransferConfig(reset_head=False, resize=None)
  assert sections.read(TransferConfig, {'resize': 'bicubic'}, 'transfer').resize == 'bicubic'
  with pytest.raises(ValueError, match=r"transfer.resize: unknown 'nearest'; choose from \['bicubic', 'bilinear'\]"):
    sections.read(TransferConfig, {'resize': 'nearest'}, 'transfer')
  with pytest.raises(ValueError, match='transfer.reset_heads: unknown config key; did you mean transfer.reset_head'):
    sections.read(TransferConfig, {'reset_heads': True}, 'transfer')

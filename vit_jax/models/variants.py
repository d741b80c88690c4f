"""The published sizes of the Vision Transformer, and the variants that are named after them."""
import re
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.models.bit.shape import DEPTHS


def variant_fields(name: str) -> dict[str, Any]:
  """Return width, depth, mlp_dim, heads, patch_size and resnet of a variant.

  Args:
    name: 'B/16', a size of VARIANTS and a patch size in pixels. Or a hybrid, whose suffix is the total down-sampling
      (section 4.4): 'R50+B/32' has all four stages of a ResNet, 'R50+B/16' the units of the last one in the third
      (section 4.1); 'R+Ti/16' has the root alone and 8x8 patches, which the authors' code calls so although its patches
      are 32 pixels wide ("How to train your ViT?", arXiv 2106.10270, section 3.2).

  Raises:
    UserError: another name.
  """
  found = re.fullmatch(r'(?:R(\d*)\+)?(\w+)/([1-9]\d*)', str(name))
  if not found or found[2] not in VARIANTS:
    raise UserError(f"model.variant: unknown {name!r}; expected SIZE/PATCH such as 'B/16', SIZE one of "
                    f"{sorted(VARIANTS)}, or a hybrid such as 'R50+B/16'")
  depth, letters, patch = found[1], found[2], int(found[3])
  if depth is None:
    return dict(VARIANTS[letters], patch_size=patch, resnet=None)
  if depth == '':
    stages, patch_size, known = (), 8, patch == 16
  else:
    units = DEPTHS.get(int(depth), ())
    stages, patch_size = units if patch == 32 else (*units[:2], sum(units[2:])), 1
    known = bool(units) and patch in (16, 32)
  if not known:
    raise UserError(f"model.variant: unknown hybrid {name!r}; expected R+SIZE/16, or RDEPTH+SIZE/16 or /32 with DEPTH "
                    f'one of {sorted(DEPTHS)}; any other ResNet is given by model.resnet and model.patch_size')
  return dict(VARIANTS[letters], patch_size=patch_size, resnet=stages)


# Paper, table 1 (B, L, H); "How to train your ViT?" (arXiv 2106.10270), table 1 (Ti, S); "Scaling Vision Transformers"
# (arXiv 2106.04560), table 2 (g, G); "Getting ViT in Shape" (arXiv 2305.13035) and big_vision's models/vit.py (So400m).
VARIANTS = {
    'Ti': dict(width=192, depth=12, mlp_dim=768, heads=3),
    'S': dict(width=384, depth=12, mlp_dim=1536, heads=6),
    'B': dict(width=768, depth=12, mlp_dim=3072, heads=12),
    'L': dict(width=1024, depth=24, mlp_dim=4096, heads=16),
    'So400m': dict(width=1152, depth=27, mlp_dim=4304, heads=16),
    'H': dict(width=1280, depth=32, mlp_dim=5120, heads=16),
    'g': dict(width=1408, depth=40, mlp_dim=6144, heads=16),
    'G': dict(width=1664, depth=48, mlp_dim=8192, heads=16),
}

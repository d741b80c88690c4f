"""Arrays that a reader left over: which of them would change what the model computes."""
from collections.abc import Iterable
import re

# Parts of names of arrays that take part in the computation of an encoder, its stem, its pooling and its head …
_COMPUTES = re.compile(
    r'(^|[./])(blocks?|layers?|encoderblock(_\d+)?|encoder|transformer|embeddings?|patch_embed\w*|pos_embed\w*|rope\w*|'
    r'rotary\w*|rel_pos\w*|\w*_tokens?|dist\w*|\w*norm\w*|pre_?layrnorm|attn_?pool\w*|probe|head_dist|'
    r'\w*projection|conv\w*|stages?)([./]|$)', re.IGNORECASE)
# … and of those that do not: what is used in pre-training only, buffers that are computed again, other towers.
_HARMLESS = re.compile(r'mask_token|(^|[./])(text\w*|\w*decoder\w*|predictor\w*|teacher\w*|num_batches_tracked|'
                       r'position_ids|\w*_index|inv_freq|periods)([./]|$)', re.IGNORECASE)


def computing(names: Iterable[str]) -> list[str]:
  """Return those of the unused arrays' names that belong to a computation which the model would not do."""
  return [name for name in names if _COMPUTES.search(name) and not _HARMLESS.search(name)]

"""Masked patch prediction ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 4.6 and appendix B.1.2)."""
from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.base.choices import choose
from vit_jax.models.base import PatchModel
from vit_jax.objectives.base import ObjectiveContext
from vit_jax.objectives.masked import masks
from vit_jax.objectives.masked.base import MaskedObjective, MaskHead
from vit_jax.objectives.masked.masks import Hidden, Visible
from vit_jax.objectives.masked.targets import Colors, Pixels, Place, Predictions, Target

# Of the corrupted patches (appendix B.1.2): the learned token, the embedding of another patch; the rest is kept.
_SHARE_TOKEN, _SHARE_OTHER = 0.8, 0.1

TARGETS: dict[str, Callable[[Place], Target]] = {
    'mean_color': lambda place: Colors(place, 1),
    'pixels': lambda place: Pixels(place, power=2),
    'small_patch': lambda place: Colors(place, 4),
}


@dataclasses.dataclass(frozen=True)
class MaskedPatchesConfig:
  """Section `objective` of kind 'masked_patches'.

  Attributes:
    kind: a row of `objectives.OBJECTIVES`.
    target: a name of TARGETS: 'mean_color' (3 bits per channel; the one that the paper reports), 'small_patch' (4×4
      such colors) or 'pixels' (all of them, by their squared error).
    ratio: share of the patches that are corrupted.
  """
  kind: str = 'masked_patches'
  target: str = 'mean_color'
  ratio: float = 0.5

  def __post_init__(self):
    choose(TARGETS, self.target, 'objective.target')
    masks.check_ratio(self.ratio)


class MaskedPatches(MaskedObjective):
  """Corrupts the embeddings of half the patches and predicts what they show, each from its own last token.

  The number of corrupted patches is exact; how each is corrupted is drawn for itself. The other patch whose embedding
  it may get is one of the same image, so that no example depends on what else is in its batch.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: as for `MaskedObjective`, or a target that patches of this size do not have.
  """

  Config = MaskedPatchesConfig

  def __init__(self, config: MaskedPatchesConfig, context: ObjectiveContext):
    self._config, self._context = config, context
    super().__init__(context, config.kind, config.ratio)

  def make_target(self) -> Target:
    """Return what the config names."""
    return TARGETS[self._config.target](self.place)

  def make_own(self, rngs: nnx.Rngs) -> MaskHead:
    """Return the mask token and the linear layer."""
    return MaskHead(self._context, self.target.num_outputs, rngs)

  def predict(self, model: PatchModel, own: Any, tokens: jax.Array, hidden: Hidden, visible: Visible,
              corruption: jax.Array, keys: jax.Array | None) -> Predictions:
    """Return predictions of the corrupted patches; see `MaskedObjective.predict`."""
    del visible
    count = tokens.shape[1]
    token, source = jax.vmap(lambda key: draw_corruption(key, count))(corruption)
    corrupted = masks.are_among(hidden, count)
    tokens = masks.take(tokens, jnp.where(corrupted, source, jnp.arange(count)))
    tokens = own.hide(model, tokens, corrupted & token)
    return own(masks.take(model.encode(tokens, rngs=keys)[:, self._num_prefix:], hidden))


def draw_corruption(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Return how each of `count` patches would be corrupted.

  Args:
    key: of the example.
    count: at least 2.

  Returns:
    ((count,) bool, whether it becomes the mask token; (count,) int32, whose embedding it gets otherwise: another patch,
    all being equally likely, or itself).
  """
  kind_key, other_key = jax.random.split(key)
  kind, number = jax.random.uniform(kind_key, (count,)), jnp.arange(count)
  other = (number + jax.random.randint(other_key, (count,), 1, count)) % count
  return kind < _SHARE_TOKEN, jnp.where(kind < _SHARE_TOKEN + _SHARE_OTHER, other, number)

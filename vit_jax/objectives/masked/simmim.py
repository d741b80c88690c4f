"""SimMIM ("SimMIM: a Simple Framework for Masked Image Modeling", arXiv 2111.09886)."""
import dataclasses
from typing import Any

from flax import nnx
import jax

from vit_jax.base.errors import UserError
from vit_jax.models.base import PatchModel
from vit_jax.objectives.base import ObjectiveContext
from vit_jax.objectives.masked import masks
from vit_jax.objectives.masked.base import MaskedObjective, MaskHead
from vit_jax.objectives.masked.masks import Hidden, Visible
from vit_jax.objectives.masked.targets import Pixels, Predictions, Target


@dataclasses.dataclass(frozen=True)
class SimMimConfig:
  """Section `objective` of kind 'simmim'.

  Attributes:
    kind: a row of `objectives.OBJECTIVES`.
    ratio: share of the squares that are hidden.
    unit: rows and columns of a square, in patches: 2 is the paper's 32 pixels with patches of 16.
  """
  kind: str = 'simmim'
  ratio: float = 0.6
  unit: int = 2

  def __post_init__(self):
    masks.check_ratio(self.ratio)
    if self.unit < 1:
      raise UserError(f'objective.unit: must be at least 1, got {self.unit}')


class SimMim(MaskedObjective):
  """Replaces squares of patches by a learned token; a linear layer predicts their pixels, with an L1 loss.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: as for `MaskedObjective`.
  """

  Config = SimMimConfig

  def __init__(self, config: SimMimConfig, context: ObjectiveContext):
    self._context = context
    super().__init__(context, config.kind, config.ratio, config.unit)

  def make_target(self) -> Target:
    """Return pixels as the model sees them, by their absolute error."""
    return Pixels(self.place, power=1)

  def make_own(self, rngs: nnx.Rngs) -> MaskHead:
    """Return the mask token and the linear layer."""
    return MaskHead(self._context, self.target.num_outputs, rngs)

  def predict(self, model: PatchModel, own: Any, tokens: jax.Array, hidden: Hidden, visible: Visible,
              corruption: jax.Array, keys: jax.Array | None) -> Predictions:
    """Return predictions of the hidden patches; see `MaskedObjective.predict`."""
    del visible, corruption
    tokens = own.hide(model, tokens, masks.are_among(hidden, tokens.shape[1]))
    return own(masks.take(model.encode(tokens, rngs=keys)[:, self._num_prefix:], hidden))

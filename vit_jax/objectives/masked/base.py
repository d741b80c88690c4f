"""What the objectives of hidden patches have in common: the model's patches in, losses of the hidden ones out."""
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from vit_jax.base.errors import UserError
from vit_jax.models import layers
from vit_jax.models.base import PatchModel
from vit_jax.objectives.base import ObjectiveContext, Outcome, mean_metric, random_keys
from vit_jax.objectives.masked import masks
from vit_jax.objectives.masked import patches as patches_lib
from vit_jax.objectives.masked.masks import Hidden, Visible
from vit_jax.objectives.masked.targets import Place, Predictions, Target

# Not among the small numbers by which layers and batch mixing derive their keys from an example's.
_STREAM = 0x6D61736B


class Reconstruction(NamedTuple):
  """Images, what of them was hidden, and what the model makes of that.

  Attributes:
    original: (B, rows, columns, channels) float32 pixels 0..1, as much of the images as patches cover.
    hidden: (B, rows, columns) bool.
    filled: like `original`, hidden patches replaced by predictions.
  """
  original: jax.Array
  hidden: jax.Array
  filled: jax.Array


class MaskedObjective:
  """An objective that hides some patches and predicts them; a subclass says from what.

  Args:
    context: of the run.
    kind: of the objective, for messages.
    ratio: share of the patches that are hidden.
    unit: rows and columns of the squares of patches that are hidden together.

  Raises:
    UserError: a model without patches, or of patches that the ratio or the unit does not fit.
  """

  reads_labels = False

  def __init__(self, context: ObjectiveContext, kind: str, ratio: float, unit: int = 1):
    model = context.model
    if not isinstance(model, PatchModel):
      raise UserError(f'objective.kind: {kind!r} hides patches between their embedding and the encoder, which a model '
                      f"of kind {model.config.kind!r} does not have; use model.kind='vit'")
    masks.check(model.config.grid, ratio, unit)
    self._grid, self._ratio, self._unit = model.config.grid, ratio, unit
    self._num_prefix = model.config.num_prefix_tokens
    self.place = Place(model.config.patch_pixels, model.channels, context.normalization)
    self.target = self.make_target()
    self.metrics: Mapping[str, Literal['max', 'min']] = self.target.metrics
    self._own = nnx.graphdef(nnx.eval_shape(lambda: self.make_own(nnx.Rngs(0))))

  def make_target(self) -> Target:
    """Return what is predicted."""
    raise NotImplementedError

  def make_own(self, rngs: nnx.Rngs) -> Any:
    """Return the module of the objective's own parameters."""
    raise NotImplementedError

  def predict(self, model: PatchModel, own: Any, tokens: jax.Array, hidden: Hidden, visible: Visible,
              corruption: jax.Array, keys: jax.Array | None) -> Predictions:
    """Return predictions of the hidden patches.

    Args:
      model: of the run.
      own: the module that `make_own` makes, with its parameters.
      tokens: (B, patches, width), embedded patches.
      hidden, visible: indices of the patches.
      corruption: (B,) PRNG keys for whatever else is random about what is hidden.
      keys: (B,) PRNG keys for dropout in training; None in evaluation.
    """
    raise NotImplementedError

  def init(self, params: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Return the parameters that predict, and no averages; see `Objective.init`."""
    del params
    return nnx.to_pure_dict(nnx.state(self.make_own(nnx.Rngs(key)), nnx.Param)), {}

  def __call__(self, model: Any, own: Any, averages: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> Outcome:
    """Return the mean loss over the hidden patches of each image, and the target's metrics; see `Objective`."""
    del averages
    predictions, hidden = self._predict(model, own, batch, keys)
    patches = masks.take(patches_lib.patchify(batch['image'], self.place.size), hidden)
    values = self.target.measure(predictions, patches)
    return Outcome(self.target.losses(predictions, patches).mean(axis=-1),
                   {name: mean_metric(value.mean(axis=-1), batch) for name, value in values.items()})

  def update(self, averages: Any, means: Any, params: Any) -> Any:
    """Return the averages, which are empty, as they are."""
    del means, params
    return averages

  def reconstruct(self, model: Any, own: Any, batch: Mapping[str, Any]) -> Reconstruction:
    """Hide what an evaluation hides, and fill it in.

    Args:
      model, own, batch: as for a call; of the batch, `image` and `id`.
    """
    predictions, hidden = self._predict(model, own, batch, None)
    patches = patches_lib.patchify(batch['image'], self.place.size)
    predicted = self.target.to_pixels(predictions, masks.take(patches, hidden))
    pixels = self.place.to_pixels(patches)
    filled = pixels.at[jnp.arange(len(pixels))[:, None], hidden].set(predicted)
    covered = jnp.broadcast_to(masks.are_among(hidden, pixels.shape[1])[..., None], pixels.shape)
    images = [patches_lib.unpatchify(x, self.place.size, self._grid) for x in (pixels, covered, filled)]
    return Reconstruction(images[0], images[1][..., 0], images[2])

  def _predict(self, model: Any, own: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> tuple[Predictions, Hidden]:
    """Return predictions of the hidden patches of a batch, and the indices of these."""
    places, corruption = layers.split(random_keys(batch, keys, _STREAM), 2)
    assert places is not None and corruption is not None
    hidden, visible = masks.draw(places, self._grid, self._ratio, self._unit)
    tokens = model.patch_tokens(batch['image'])
    return self.predict(model, nnx.merge(self._own, own), tokens, hidden, visible, corruption, keys), hidden


class MaskHead(nnx.Module):
  """A learned token for hidden patches, and a linear layer from a patch's own last token to a prediction.

  Args:
    context: of the run.
    num_outputs: numbers per prediction.
    rngs: parameter stream.
  """

  def __init__(self, context: ObjectiveContext, num_outputs: int, rngs: nnx.Rngs):
    config = context.model.config
    # A model with a mask token of its own, as in weights of DINOv2 or BEiT, goes on with that.
    self.mask_token = None if getattr(config, 'mask_token', False) else nnx.Param(
        nnx.initializers.normal(0.02)(rngs.params(), (config.width,), jnp.float32))
    self.head = nnx.Linear(config.width, num_outputs, kernel_init=nnx.initializers.xavier_uniform(),
                           dtype=jnp.float32, rngs=rngs)

  def hide(self, model: Any, tokens: Float[jax.Array, 'batch patches width'],
           where: Bool[jax.Array, 'batch patches']) -> Float[jax.Array, 'batch patches width']:
    """Return the tokens with the mask token in some places."""
    token = model.mask_token if self.mask_token is None else self.mask_token
    return jnp.where(where[..., None], token[...].astype(tokens.dtype), tokens)

  def __call__(self, tokens: Float[jax.Array, 'batch hidden width']) -> Predictions:
    """Return the predictions of tokens, float32."""
    return layers.dense(self.head, tokens)

"""How an image becomes what a model was trained to see; travels with the model."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What happens to an image before a model sees it.

  Attributes:
    transform: chain of image transforms that gives the model's image size, see `data.spec`: 'resize' squashes,
      'resize_small(256)|central_crop' keeps the aspect.
    mean: subtracted after scaling to 0..1; a number, or one for each channel.
    std: divided by then; likewise.
  """
  transform: str = 'resize'
  mean: float | tuple = 0.5
  std: float | tuple = 0.5

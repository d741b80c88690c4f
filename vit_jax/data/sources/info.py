"""What a model and a training step need to know of a data set: enough to plan a run where the data is not."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
  """A split in numbers.

  Attributes:
    examples: how many, which is an epoch.
    num_classes: how many classes there are.
    channels: 1, greyscale, or 3, colour.
    many_labels: whether an image has any number of classes instead of one.
  """
  examples: int
  num_classes: int
  channels: int
  many_labels: bool = False


# Training images and classes by TFDS name: the paper, section 4.1 (ImageNet, ImageNet-21k, JFT); the others as their
# authors count them (CIFAR: 50,000; Pets: 3,680 in trainval; Flowers: 1,020; Fashion-MNIST: 60,000 grey images).
FACTS = {
    'cifar10': Facts(50_000, 10, 3),
    'cifar100': Facts(50_000, 100, 3),
    'fashion_mnist': Facts(60_000, 10, 1),
    'imagenet2012': Facts(1_281_167, 1000, 3),
    'imagenet21k': Facts(14_197_122, 21_843, 3),
    'jft300m': Facts(303_000_000, 18_291, 3),
    'oxford_flowers102': Facts(1_020, 102, 3),
    'oxford_iiit_pet': Facts(3_680, 37, 3),
}

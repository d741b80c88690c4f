"""Dataset info: the numbers that a model and a step need, so that a run can be planned without its data."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """The numbers of a split.

  Attributes:
    num_examples: examples per epoch.
    num_classes: number of classes.
    channels: 1 (grayscale) or 3 (color).
    multi_label: whether an image can have any number of classes instead of exactly one.
  """
  num_examples: int
  num_classes: int
  channels: int
  multi_label: bool = False


# Training splits by TFDS name. ImageNet, ImageNet-21k, JFT: the paper, section 4.1; the others as their authors count
# them (CIFAR: 50,000; Pets: 3,680 in trainval; Flowers: 1,020; Fashion-MNIST: 60,000 grayscale images).
KNOWN_DATASETS = {
    'cifar10': DatasetInfo(50_000, 10, 3),
    'cifar100': DatasetInfo(50_000, 100, 3),
    'fashion_mnist': DatasetInfo(60_000, 10, 1),
    'imagenet2012': DatasetInfo(1_281_167, 1000, 3),
    'imagenet21k': DatasetInfo(14_197_122, 21_843, 3),
    'jft300m': DatasetInfo(303_000_000, 18_291, 3),
    'oxford_flowers102': DatasetInfo(1_020, 102, 3),
    'oxford_iiit_pet': DatasetInfo(3_680, 37, 3),
}

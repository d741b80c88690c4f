"""Pre-training of ViT-B/16 ("An Image is Worth 16x16 Words", arXiv 2010.11929, table 3).

  python -m vit_jax.main --config=configs/vit_b16.py --workdir=gs://BUCKET/vit_b16
  python -m vit_jax.main --config=configs/vit_b16.py:imagenet21k --workdir=gs://BUCKET/vit_b16_i21k

The argument is the dataset: imagenet (the default), imagenet21k or jft. For other models see `vit.py`.

Hardware: a TPU pod slice (batch 4,096); for fewer devices, set --config.data.batch_size.
Time: 300 epochs of ImageNet: about 93,000 steps.
Accuracy: 74.79 % on ImageNet's validation split at 224 pixels (an author's answer in google-research/vision_transformer
issue 62); 77.91 % after fine-tuning at 384 pixels (the paper, table 5); not measured by us.
"""
import ml_collections

from vit_jax.configs import common


def get_config(dataset: str = 'imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for a dataset."""
  return common.pretrain('b16', dataset)

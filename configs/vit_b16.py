"""Pre-training of ViT-B/16 ("An Image is Worth 16x16 Words", arXiv 2010.11929, table 3).

  python -m vit_jax.main --config=configs/vit_b16.py --workdir=gs://BUCKET/vit_b16
  python -m vit_jax.main --config=configs/vit_b16.py:imagenet21k --workdir=gs://BUCKET/vit_b16_i21k

The argument is the data set: imagenet (the default), imagenet21k or jft; other models are in `vit.py`.

Hardware: made for a TPU pod slice (batch 4,096); --config.data.batch_size fits less.
Time: 300 epochs of ImageNet, about 93,000 steps.
Accuracy, none of it measured by us: 74.79 % of ImageNet's validation images at 224 pixels (an author's answer in
google-research/vision_transformer issue 62); 77.91 % after fine-tuning at 384 pixels (the paper, table 5).
"""
from configs import common


def get_config(dataset='imagenet'):
  """Returns the recipe for a data set."""
  return common.pretrain('b16', dataset)

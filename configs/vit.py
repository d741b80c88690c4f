"""Pre-training of ViT-B, L and H and of hybrids ("An Image is Worth 16x16 Words", arXiv 2010.11929, table 3).

  python -m vit_jax.main --config=configs/vit.py:l16,imagenet21k --workdir=gs://BUCKET/l16_i21k

The argument is MODEL,DATASET:
  MODEL: b16, b32, l16, l32 or h14; a hybrid of ResNet-50 and ViT: r50_b16, r50_b32, r50_l16 or r50_l32
  DATASET: imagenet, imagenet21k or jft (not public: name a TFDS dataset of your own with --config.data.name=NAME)

Hardware: TPU v3 in the paper (table 2): 230 core-days for L/16 on ImageNet-21k, 2,500 for H/14 on JFT.
Time: 90 epochs of ImageNet-21k: about 312,000 steps of 4,096 images.
Accuracy: the paper's (table 5): ImageNet top-1 in percent after fine-tuning at 384 pixels; not measured by us.

               b16    b32    l16    l32    h14
  imagenet     77.91  73.38  76.53  71.16  -
  imagenet21k  83.97  81.28  85.15  80.99  85.13
  jft          84.15  80.73  87.12  84.37  88.04

Hybrids after JFT (table 6): r50_b16 85.58, r50_b32 84.90, r50_l16 87.12, r50_l32 85.68.
"""
import ml_collections

from vit_jax.configs import common


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  return common.pretrain(model, dataset or 'imagenet')

"""Pre-training of ViT-H/14 ("An Image is Worth 16x16 Words", arXiv 2010.11929, table 3).

  python -m vit_jax.main --config=configs/vit_h14.py --workdir=gs://BUCKET/vit_h14_i21k
  python -m vit_jax.main --config=configs/vit_h14.py:jft --config.data.name=NAME --workdir=gs://BUCKET/vit_h14

The argument is the dataset: imagenet21k (the default), imagenet or jft (not public: NAME is a TFDS dataset of your
own). For other models see `vit.py`.

Hardware: a TPU pod slice (batch 4,096). On v5e with 16 images per chip, --config.parallel.strategy=mesh
--config.parallel.fsdp=8 (eight chips share one state) needs 6.6 instead of 16.2 GB per chip and, by the compiler's
estimate, three quarters of the cycles (experiments/benchmarks/tpu_step.md). To see whether it fits a slice:
python -m vit_jax.plan --config=configs/vit_h14.py --topology=v5e:16x16. The paper's JFT run took 2,500 TPUv3-core-days.
Time: 90 epochs of ImageNet-21k: about 312,000 steps.
Accuracy: the paper's (table 5), on ImageNet after fine-tuning: 85.13 % from ImageNet-21k, 88.04 % from JFT; not
measured by us.
"""
import ml_collections

from vit_jax.configs import common


def get_config(dataset: str = 'imagenet21k') -> ml_collections.ConfigDict:
  """Return the recipe for a dataset."""
  return common.pretrain('h14', dataset)

"""Pre-training of ViT-H/14 ("An Image is Worth 16x16 Words", arXiv 2010.11929, table 3).

  python -m vit_jax.main --config=configs/vit_h14.py --workdir=gs://BUCKET/vit_h14_i21k
  python -m vit_jax.main --config=configs/vit_h14.py:jft --config.data.name=NAME --workdir=gs://BUCKET/vit_h14

The argument is the data set: imagenet21k (the default), imagenet or jft (not public: NAME is your own); other models
are in `vit.py`.

Hardware: made for a TPU pod slice (batch 4,096). On v5e, 16 images a chip, --config.parallel.strategy=mesh
--config.parallel.fsdp=8 (eight chips share a state) takes 6.6 instead of 16.2 GB and, by the compiler's estimate, three
quarters of the cycles (experiments/benchmarks/tpu_step.md); which slice holds it says
python -m vit_jax.plan --config=configs/vit_h14.py --topology=v5e:16x16. The paper's JFT run: 2,500 TPUv3-core-days.
Time: 90 epochs of ImageNet-21k, about 312,000 steps.
Accuracy, none of it measured by us (ImageNet, fine-tuned; the paper's table 5): 85.13 % from ImageNet-21k, 88.04 % from
JFT.
"""
from configs import common


def get_config(dataset='imagenet21k'):
  """Returns the recipe for a data set."""
  return common.pretrain('h14', dataset)

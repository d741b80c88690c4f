"""Masked patch prediction ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 4.6 and appendix B.1.2).

  python -m vit_jax.main --config=configs/masked_patches.py:mean_color,imagenet --workdir=gs://BUCKET/masked_b16
  python -m vit_jax.main --config=configs/finetune.py:b16,imagenet --config.init=gs://BUCKET/masked_b16 \\
      --workdir=gs://BUCKET/masked_b16_imagenet

On a CPU, with the shipped digits, and what that gives:

  python -m vit_jax.main --config=configs/masked_patches.py:mean_color,digits --workdir=runs/masked
  python -m vit_jax.main --config=configs/digits.py --config.model.patch_size=2 --config.init=runs/masked \\
      --workdir=runs/digits_masked
  python -m vit_jax.show --workdir=runs/masked --output=masked.png

The argument is TARGET,DATASET:
  TARGET: mean_color (the default, the one that the paper reports), small_patch or pixels; see docs/self_supervision.md
  DATASET: imagenet (the default), imagenet21k, jft (not public: name a TFDS dataset of your own with
    --config.data.name=NAME), or to try it, digits or fashion_mnist

The paper: JFT-300M, 1M steps (about 14 epochs) of batch 4,096, Adam, learning rate 2e-4, warm-up of 10,000 steps,
cosine decay; half the patches corrupted (15 % was slightly worse), flips and crops as in classification (the authors'
answer in google-research/vision_transformer issue 103). It does not say the weight decay, here 0, or the clipping of
gradients, here at norm 1.

Hardware: a TPU pod slice (batch 4,096); for fewer devices, set --config.data.batch_size. Digits: 2 cores of a CPU.
Time: 1M steps; the paper's gains end after about 100,000, and ImageNet instead of JFT gives as much. Digits: minutes.
Accuracy: the paper's: ImageNet 79.9 % after fine-tuning, 2 points above training from scratch and 4 below supervised
pre-training; not measured by us. Digits: see docs/self_supervision.md.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common, digits, fashion_mnist


def get_config(arg: str = 'mean_color,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'TARGET,DATASET'."""
  target, _, dataset = arg.partition(',')
  objective = dict(kind='masked_patches', target=target, ratio=0.5)
  if dataset == 'digits':
    config = common.without_labels(digits.get_config(), objective, '100 epochs')
    config.model.patch_size = 2
    return config
  if dataset == 'fashion_mnist':
    return common.without_labels(fashion_mnist.get_config(), objective, '12 epochs')
  data = choices.choose(common.DATASETS, dataset or 'imagenet', 'recipe argument DATASET')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform='inception_crop|flip', eval_transform='resize_small(256)|central_crop', threads=16)
  config.model = dict(variant='B/16', pool='token', dropout=0.0, dtype='bfloat16', unroll=True)
  config.objective = objective
  config.optim = dict(name='adam', peak_lr=2e-4, schedule='cosine', warmup='10_000 steps', weight_decay=0.0,
                      clip_norm=1.0, options=dict(b1=0.9, b2=0.999, mu_dtype='bfloat16'))
  config.train = dict(duration='1_000_000 steps', log_every='50 steps', eval_every='10_000 steps',
                      micro_batch=common.MICRO_BATCH['B/16'])
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='objective', split=split) for name, split in data['evaluate'].items()}
  return config

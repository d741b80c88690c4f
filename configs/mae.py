"""Masked autoencoders ("Masked Autoencoders Are Scalable Vision Learners", MAE, arXiv 2111.06377).

  python -m vit_jax.main --config=configs/mae.py:b16,imagenet --workdir=gs://BUCKET/mae_b16
  python -m vit_jax.main --config=configs/finetune.py:any,imagenet --config.init=gs://BUCKET/mae_b16 \\
      --workdir=gs://BUCKET/mae_b16_imagenet

On a CPU, with the shipped digits, and what that gives:

  python -m vit_jax.main --config=configs/mae.py:small,digits --workdir=runs/mae
  python -m vit_jax.main --config=configs/digits.py --config.model.patch_size=2 --config.init=runs/mae \\
      --workdir=runs/digits_mae
  python -m vit_jax.show --workdir=runs/mae --output=mae.png

The argument is MODEL,DATASET:
  MODEL: b16, l16 or h14
  DATASET: imagenet, imagenet21k or jft (not public)
or, to try it, small,digits or small,fashion_mnist.

Numbers of the authors' code (facebookresearch/mae, PRETRAIN.md and main_pretrain.py): 800 epochs of batch 4,096, AdamW
with momenta 0.9 and 0.95, learning rate 1.5e-4 per 256 images, weight decay 0.05 on kernels, which there too is scaled
by the learning rate, warm-up of 40 epochs, cosine decay, no clipping; crops of 20 to 100 % of the area, resized by
cubic interpolation there; fixed sine and cosine positions; a decoder of 8 blocks of width 512.
To fine-tune as the authors do (FINETUNE.md): AdamW, layer-wise learning rates, mixup and CutMix; see
--config.optim and --config.mix.

Hardware: a TPU pod slice or 64 GPUs (batch 4,096); for fewer, set --config.train.micro_batch. Digits: 2 cores of a CPU.
Time: 42 hours for L/16 on 64 V100 GPUs (PRETRAIN.md). Digits: minutes.
Accuracy: the authors', ImageNet top-1 after 1,600 epochs and fine-tuning with their settings: B/16 83.6 %, L/16 85.9 %,
H/14 86.9 %; not measured by us. Digits: see docs/self_supervision.md.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common, digits, fashion_mnist

MODELS = {'b16': 'B/16', 'l16': 'L/16', 'h14': 'H/14', 'small': None}


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  variant = choices.choose(MODELS, model, 'recipe argument MODEL')
  if variant is None:
    return _small(dataset)
  data = choices.choose(common.DATASETS, dataset or 'imagenet', 'recipe argument DATASET')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform='inception_crop(area=(0.2, 1.0))|flip', eval_transform='resize_small(256)|central_crop',
      threads=16)
  config.normalization = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.model = dict(variant=variant, pool='token', position='sincos2d', gelu='exact', dtype='bfloat16', unroll=True)
  config.objective = dict(kind='mae', ratio=0.75, standardize=True, decoder_width=512, decoder_depth=8,
                          decoder_heads=16)
  config.optim = dict(name='adamw', peak_lr=1.5e-4 * 4096 / 256, schedule='cosine', warmup='40 epochs',
                      weight_decay=0.05, decay_mask='.*/kernel', clip_norm=None, options=dict(b1=0.9, b2=0.95))
  config.train = dict(duration='800 epochs', log_every='50 steps', eval_every='20 epochs')
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='objective', split=split) for name, split in data['evaluate'].items()}
  return config


def _small(dataset: str) -> ml_collections.ConfigDict:
  recipes = {'digits': (digits, '200 epochs'), 'fashion_mnist': (fashion_mnist, '20 epochs')}
  recipe, duration = choices.choose(recipes, dataset or 'digits', 'recipe argument DATASET')
  objective = dict(kind='mae', ratio=0.75, standardize=True, decoder_width=64, decoder_depth=2, decoder_heads=4)
  config = common.without_labels(recipe.get_config(), objective, duration)
  if recipe is digits:
    config.model.patch_size = 2
  return config

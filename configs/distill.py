"""Distillation as in DeiT ("Training data-efficient image transformers & distillation through attention", 2012.12877).

  python -m vit_jax.main --config=configs/distill.py:b16,imagenet --config.objective.teacher=SOURCE \\
      --workdir=gs://BUCKET/deit_b16

On a CPU, with the shipped digits: a teacher, then a student half as wide:

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m vit_jax.main --config=configs/distill.py:small,digits --config.objective.teacher=runs/digits \\
      --workdir=runs/distilled

The argument is MODEL,DATASET:
  MODEL: ti16, s16 or b16
  DATASET: imagenet
or, to try it, small,digits. SOURCE is any classifier that vit_jax.load reads, such as timm:NAME or a run directory.

Numbers of the authors' code (facebookresearch/deit, main.py, defaults): 300 epochs of batch 1,024, AdamW, learning
rate 5e-4 per 512 images, cosine decay (theirs ends at 1e-5, ours at 0), 5 epochs of warm-up, weight decay 0.05, label
smoothing 0.1, stochastic depth 0.1, no dropout and no clipping, RandAugment of magnitude 9, mixup 0.8 and CutMix 1.0,
random erasing with probability 0.25; a token for the teacher, and half of the loss by its best class. Their teacher is
a RegNetY-16GF. They also jitter colors, evaluate an EMA (decay 0.99996: --config.train.ema_decay=0.99996
--config.train.ema_warmup=True), and repeat each image three times in a batch: --config.data.repeats=3 with a batch size
that 3 divides and --config.train.duration='100 epochs', as an epoch counts the repeats.

Hardware: 8 GPUs or a TPU v3-8; for fewer, set --config.train.micro_batch. Digits: 2 cores of a CPU.
Time: not measured.
Accuracy: the authors' (README_deit.md), ImageNet top-1: Ti/16 74.5 %, S/16 81.2 %, B/16 83.4 %; not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common, digits

MODELS = {'ti16': 'Ti/16', 's16': 'S/16', 'b16': 'B/16', 'small': None}


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  variant = choices.choose(MODELS, model, 'recipe argument MODEL')
  if variant is None:
    choices.choose({'digits': digits}, dataset or 'digits', 'recipe argument DATASET')
    return _small()
  choices.choose({'imagenet': None}, dataset or 'imagenet', 'recipe argument DATASET')
  data = common.DATASETS['imagenet']

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=1024, image_size=common.pixels(224),
      train_transform='inception_crop|flip|randaugment(2, 9)|random_erasing(0.25)',
      eval_transform='resize_small(256)|central_crop', threads=16)
  config.normalization = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.mix = dict(mixup=0.8, cutmix=1.0)
  config.model = dict(variant=variant, pool='distilled', stochastic_depth=0.1, gelu='exact', dtype='bfloat16',
                      unroll=True)
  config.objective = dict(kind='distillation', teacher='', targets='hard', alpha=0.5, label_smoothing=0.1)
  config.optim = dict(name='adamw', peak_lr=5e-4 * 1024 / 512, schedule='cosine', warmup='5 epochs', weight_decay=0.05,
                      decay_mask='.*/kernel', clip_norm=None)
  config.train = dict(duration='300 epochs', log_every='50 steps', eval_every='2_500 steps',
                      micro_batch=common.MICRO_BATCH[variant])
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in data['evaluate'].items()}
  return config


def _small() -> ml_collections.ConfigDict:
  config = digits.get_config()
  config.model.update(width=48, mlp_dim=96, pool='distilled', dropout=0.0)
  config.objective = dict(kind='distillation', teacher='', targets='hard')
  config.train.update(duration='40 epochs', eval_every='10 epochs')
  config.evaluators.objective = dict(kind='objective', split='test')
  return config

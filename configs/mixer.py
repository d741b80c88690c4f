"""MLP-Mixer ("MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601), pre-training.

  python -m vit_jax.main --config=configs/mixer.py:b16,imagenet --workdir=gs://BUCKET/mixer_b16
  python -m vit_jax.main --config=configs/mixer.py:l16,imagenet21k --workdir=gs://BUCKET/mixer_l16

The argument is MODEL,DATASET:
  MODEL: b16, b32 or l16
  DATASET: imagenet or imagenet21k
To fine-tune, use configs/finetune.py:any,DATA with --config.data.image_size=224: a Mixer's parameters fit the number of
patches that it was trained with.

The settings for ImageNet are those of the authors' big_vision config (configs/mlp_mixer_i1k.py); for ImageNet-21k,
epochs, augmentation and weight decay are those of the paper's appendix B, the rest is the same.

Hardware: a TPU v3-128 in big_vision (batch 4,096); for fewer devices, set --config.data.batch_size.
Time: 300 epochs took 2 h 11 min there, for b16,imagenet.
Accuracy: b16,imagenet reached 76.3 % top-1 there, and is expected to reach 70.5 % in 60 epochs; not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common

MODELS = {'b16': 'B/16', 'b32': 'B/32', 'l16': 'L/16'}

# RandAugment's magnitude, always of two layers, and mixup's α.
AUGMENTATION = {
    'imagenet': {'b16': (15, 0.5), 'b32': (15, 0.5), 'l16': (15, 0.5)},
    'imagenet21k': {'b16': (10, 0.2), 'b32': (10, 0.2), 'l16': (20, 0.5)},
}


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  dataset = dataset or 'imagenet'
  variant = choices.choose(MODELS, model, 'recipe argument MODEL')
  magnitude, mixup = choices.choose(AUGMENTATION, dataset, 'recipe argument DATASET')[model]
  data = common.DATASETS[dataset]

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform=f'inception_crop|flip|randaugment(2, {magnitude})',
      eval_transform='resize_small(256)|central_crop', threads=16)
  config.mix = dict(mixup=mixup)
  # The head biases start at -log(classes) for the sigmoid loss.
  config.model = dict(kind='mixer', variant=variant, stochastic_depth=0.1,
                      head_bias=-6.9 if dataset == 'imagenet' else -10.0, dtype='bfloat16', unroll=True)
  config.objective = dict(loss='sigmoid')
  # big_vision scales its weight decay of 1e-4 by the schedule alone, we by the learning rate: 0.1 · 1e-3.
  config.optim = dict(name='adamw', peak_lr=1e-3, schedule='linear', warmup='10_000 steps', end_lr=1e-5,
                      weight_decay=0.1, decay_mask='.*/kernel', clip_norm=1.0, options=dict(b1=0.9, b2=0.999))
  config.train = dict(duration='300 epochs', log_every='50 steps', eval_every='2_500 steps')
  config.checkpoint = dict(every='10 minutes', keep=1)
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in data['evaluate'].items()}
  return config

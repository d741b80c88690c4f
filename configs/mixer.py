"""MLP-Mixer ("MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601), pre-training.

  python -m vit_jax.main --config=configs/mixer.py:b16,imagenet --workdir=gs://BUCKET/mixer_b16
  python -m vit_jax.main --config=configs/mixer.py:l16,imagenet21k --workdir=gs://BUCKET/mixer_l16

The argument is MODEL,DATASET:
  MODEL: b16, b32 or l16
  DATASET: imagenet or imagenet21k
To fine-tune, use configs/finetune.py:any,DATA with --config.data.image_size=224: a Mixer's parameters fit the number of
patches that it was trained with.

The settings are those of the authors' big_vision config for ImageNet (configs/mlp_mixer_i1k.py). Those that the paper
used for ImageNet-21k are in its appendix B; here they are the same as for ImageNet.

Hardware: a TPU v3-128 in big_vision (batch 4,096); for fewer devices, set --config.data.batch_size.
Time: 300 epochs took 2 h 11 min there, for b16,imagenet.
Accuracy: b16,imagenet reached 76.3 % top-1 there, and is expected to reach 70.5 % in 60 epochs; not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common

MODELS = {'b16': 'B/16', 'b32': 'B/32', 'l16': 'L/16'}

DATASETS = ('imagenet', 'imagenet21k')


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  dataset = dataset or 'imagenet'
  variant = choices.choose(MODELS, model, 'recipe argument MODEL')
  data = choices.choose({name: common.DATASETS[name] for name in DATASETS}, dataset, 'recipe argument DATASET')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform='inception_crop|flip|randaugment(2, 15)',
      eval_transform='resize_small(256)|central_crop', threads=16)
  config.mix = dict(mixup=0.5)
  # The head biases start at -log(classes) for the sigmoid loss.
  config.model = dict(kind='mixer', variant=variant, stochastic_depth=0.1,
                      head_bias=-6.9 if dataset == 'imagenet' else -10.0, dtype='bfloat16', unroll=True)
  config.objective = dict(loss='sigmoid')
  # big_vision scales its weight decay of 1e-4 by the schedule alone, we by the learning rate: 0.1 · 1e-3.
  config.optim = dict(name='adamw', peak_lr=1e-3, schedule='linear', warmup='10_000 steps', end_lr=1e-5,
                      weight_decay=0.1, decay_mask='.*/kernel', clip_norm=1.0, options=dict(b1=0.9, b2=0.999))
  config.train = dict(duration='300 epochs', log_every='50 steps', eval_every='2_500 steps')
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in data['evaluate'].items()}
  return config

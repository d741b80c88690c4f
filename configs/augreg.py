"""Pre-training with augmentation and regularization ("How to train your ViT?", AugReg, arXiv 2106.10270).

  python -m vit_jax.main --config=configs/augreg.py:b16,imagenet --workdir=gs://BUCKET/b16_augreg
  python -m vit_jax.main --config=configs/augreg.py:l16,imagenet21k,strong1 --workdir=gs://BUCKET/l16_i21k \\
      --config.model.dropout=0.1 --config.model.stochastic_depth=0.1

The argument is MODEL,DATASET,PRESET:
  MODEL: ti16, s32, s16, b32, b16 or l16
  DATASET: imagenet or imagenet21k
  PRESET: none, light1, light2, medium1, medium2, strong1 or strong2 (RandAugment and mixup, section 3.3); by default
    the authors' choice for the model
`python -m vit_jax.show` with the same --config draws what the model will see.

The paper also varies:
  regularization: none, as here, or dropout and stochastic depth of 0.1 (the second command)
  weight decay, scaled by the learning rate: 0.1, as here, or 0.03 (--config.optim.weight_decay=0.03)
  epochs on ImageNet-21k: 300, as here, or 30 (--config.train.duration='30 epochs')

Hardware: a TPU pod slice (batch 4,096); for fewer devices, set --config.data.batch_size.
Time: 300 epochs: about 93,000 steps on ImageNet, 1,030,000 on ImageNet-21k.
Accuracy: the paper's best (table 3): ImageNet top-1 in percent at 224 pixels, for ImageNet-21k after fine-tuning; not
measured by us. big_vision's version of b16,imagenet reaches about 79 (an author's answer in
google-research/big_vision issue 7).

                         ti16   s32    s16    b32    b16    l16
  imagenet, 300 epochs   69.56  69.19  77.51  71.38  78.73  74.01
  imagenet21k, 300       73.75  73.47  80.46  79.13  83.96  83.98
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET' or 'MODEL,DATASET,PRESET'."""
  model, dataset, preset = [*arg.split(','), '', ''][:3]
  dataset = dataset or 'imagenet'
  variant = choices.choose(common.AUGREG_MODELS, model, 'recipe argument MODEL')
  presets = choices.choose(common.AUGREG_PRESETS, dataset, 'recipe argument DATASET')
  transform, mixup = common.augmentation(preset or presets[model])
  data = common.DATASETS[dataset]

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform=transform, eval_transform='resize_small(256)|central_crop', threads=16)
  config.mix = dict(mixup=mixup)
  # No hidden layer before the head on ImageNet-21k; on ImageNet the paper tried both (section 3.2). The head biases
  # start at -log(classes) for the sigmoid loss (big_vision).
  hidden = {'T': 192, 'S': 384, 'B': 768, 'L': 1024}[variant[0]] if dataset == 'imagenet' else None
  config.model = dict(variant=variant, pool='token', representation_size=hidden, dropout=0.0, stochastic_depth=0.0,
                      head_bias=-6.9 if dataset == 'imagenet' else -10.0, dtype='bfloat16', unroll=True)
  config.objective = dict(loss='sigmoid')
  # Weight decay applies to kernels only; the first moment is bfloat16 (big_vision).
  config.optim = dict(name='adamw', peak_lr=1e-3, schedule='cosine', warmup='10_000 steps', weight_decay=0.1,
                      decay_mask='.*/kernel', clip_norm=1.0, options=dict(b1=0.9, b2=0.999, mu_dtype='bfloat16'))
  config.train = dict(duration='300 epochs', log_every='50 steps', eval_every='5_000 steps',
                      micro_batch=common.MICRO_BATCH[variant])
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in data['evaluate'].items()}
  return config

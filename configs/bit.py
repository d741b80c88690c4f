"""BiT ResNets ("Big Transfer", arXiv 1912.11370): pre-training, and fine-tuning by BiT's HyperRule.

  python -m vit_jax.main --config=configs/bit.py:r50x1,imagenet21k --workdir=gs://BUCKET/bit_m_r50x1
  python -m vit_jax.main --config=configs/bit.py:any,hyperrule,cifar10 --config.init=WEIGHTS --workdir=runs/cifar10

The argument is MODEL,DATASET or MODEL,hyperrule,TASK:
  MODEL: r50x1, r50x2, r50x3, r101x1, r101x3, r152x1, r152x2, r152x4 or r200x3; to fine-tune also any, to use the
    architecture of the weights
  DATASET: imagenet (BiT-S), imagenet21k (BiT-M), or jft (not public; r50x1, r50x2, r101x1, r152x1, r152x2)
  TASK: imagenet, cifar10, cifar100, pets, flowers, folder or a task of VTAB-1k, see configs/finetune.py

imagenet and imagenet21k have the settings of the authors' big_vision configs (bit_i1k.py, bit_i21k.py), whose learning
rate falls along a cosine; the paper's falls to a tenth at epochs 30, 60 and 80. jft has those of the ViT paper, which
trained its ResNets with Adam (arXiv 2010.11929, table 3).
BiT's HyperRule (section 3.3) chooses from the size of the task alone: 500 steps below 20,000 images, 10,000 below
500,000, else 20,000; mixup of 0.1 except for the smallest; SGD with learning rate 0.003, batch 512, momentum 0.9, no
weight decay. Images are resized to 512 and cropped to 480 pixels; those below 96 x 96 (CIFAR) to 160 and 128.

Hardware: TPU v3 in the paper. For few devices, set --config.train.micro_batch or --config.model.remat=full.
Time: 32 minutes for R50x1 on ImageNet on a TPU v3-128 (big_vision's header, for its ResNet v1); 9,900 core-days for
BiT-L R152x4 (ViT paper, table 2).
Accuracy: the papers', in percent, after fine-tuning: BiT-L R152x4 87.54 on ImageNet, 99.37 on CIFAR-10, 93.51 on
CIFAR-100, 96.62 on Pets, 99.63 on Flowers (ViT paper, table 2); r50x1 after 7 epochs of JFT 77.54, r152x2 84.97 on
ImageNet (its table 6); not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common

MODELS = {model: f'R{model[1:]}' for model in (
    'r50x1', 'r50x2', 'r50x3', 'r101x1', 'r101x3', 'r152x1', 'r152x2', 'r152x4', 'r200x3')}

# Peak learning rate, warm-up steps and loss; big_vision's learning rates are 0.1 and 0.03 per 256 images.
PRETRAINING = {'imagenet': (1.6, 1_000, 'softmax'), 'imagenet21k': (0.48, 5_000, 'sigmoid')}
# ViT paper, table 3: Adam's learning rate.
JFT = {'r50x1': 1e-3, 'r50x2': 1e-3, 'r101x1': 8e-4, 'r152x1': 6e-4, 'r152x2': 6e-4}

# Steps, warm-up, fractions of the run after which the learning rate falls to a tenth, mixup's α or None (big_transfer's
# bit_hyperrule.py).
HYPERRULE = {
    'small': (500, 100, (0.4, 0.6, 0.8), None),
    'medium': (10_000, 500, (0.3, 0.6, 0.9), 0.1),
    'large': (20_000, 500, (0.3, 0.6, 0.9), 0.1),
}
# The other tasks are small: below 20,000 images.
SIZES = {'cifar10': 'medium', 'cifar100': 'medium', 'imagenet': 'large'}
TINY_IMAGES = ('cifar10', 'cifar100', 'vtab_cifar100', 'vtab_dsprites_location', 'vtab_dsprites_orientation',
               'vtab_eurosat', 'vtab_svhn_cropped')


def get_config(arg: str = 'r50x1,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET' or 'MODEL,hyperrule,TASK'."""
  model, _, rest = arg.partition(',')
  dataset, _, task = (rest or 'imagenet').partition(',')
  if dataset == 'hyperrule':
    return _hyperrule(choices.choose({'any': None, **MODELS}, model, 'recipe argument MODEL'), task or 'cifar10')
  return _pretrain(model, choices.choose(MODELS, model, 'recipe argument MODEL'), dataset)


def _pretrain(model: str, variant: str, dataset: str) -> ml_collections.ConfigDict:
  data = choices.choose(common.DATASETS, dataset, 'recipe argument DATASET')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=4096, image_size=common.pixels(224),
      train_transform='inception_crop|flip', eval_transform='resize_small(256)|central_crop', threads=16)
  if dataset == 'jft':
    peak_lr = choices.choose(JFT, model, 'recipe argument MODEL for jft')
    loss, epochs = 'sigmoid', 7
    config.optim = dict(name='adamw', peak_lr=peak_lr, schedule='linear', warmup='10_000 steps', end_lr=1e-5,
                        weight_decay=0.1, decay_mask='.*', clip_norm=1.0, options=dict(b1=0.9, b2=0.999))
  else:
    peak_lr, warmup, loss = PRETRAINING[dataset]
    epochs = 90
    # big_vision scales its weight decay of 1e-4 and 3e-5 per 256 images by the schedule alone, we by the learning rate:
    # 1e-3 in both cases.
    config.optim = dict(name='sgd', peak_lr=peak_lr, schedule='cosine', warmup=f'{warmup} steps', weight_decay=1e-3,
                        decay_mask='.*/kernel', clip_norm=1.0, options=dict(momentum=0.9))
  config.model = dict(kind='bit', variant=variant, head_bias=-10.0 if loss == 'sigmoid' else 0.0, dtype='bfloat16')
  config.objective = dict(loss=loss)
  config.train = dict(duration=f'{epochs} epochs', log_every='50 steps', eval_every='1_000 steps')
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in data['evaluate'].items()}
  return config


def _hyperrule(variant: str | None, name: str) -> ml_collections.ConfigDict:
  task = choices.choose(common.TASKS, name, 'recipe argument TASK')
  steps, warmup, drops, mixup = HYPERRULE[SIZES.get(name, 'small')]
  before, size = (160, 128) if name in TINY_IMAGES else (512, 480)
  transform = f'resize(to=({before}, {before}))|random_crop' if task.get('crop', True) else 'resize'
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.init = ''
  config.data = dict(
      name=task['name'], train_split=task['train'], batch_size=512, image_size=common.pixels(size),
      train_transform=transform + '|flip' * task.get('flip', True), eval_transform='resize', threads=16,
      channels=task.get('channels'))
  config.mix = dict(mixup=mixup)
  config.model = dict(variant=variant, head_bias=0.0, dtype='bfloat16')
  if variant:
    config.model.kind = 'bit'
  config.objective = dict(loss='softmax')
  config.optim = dict(name='sgd', peak_lr=0.003, schedule='stairs', drops=drops, warmup=f'{warmup} steps',
                      weight_decay=0.0, clip_norm=None, options=dict(momentum=0.9))
  config.train = dict(duration=f'{steps} steps', log_every='50 steps', eval_every=task.get('eval_every', '500 steps'))
  config.transfer = dict(reset_head=True)
  config.evaluators = {split: dict(kind='classification', split=value) for split, value in task['evaluate'].items()}
  return config

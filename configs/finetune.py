"""Fine-tuning ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 4.1 and table 4).

  python -m vit_jax.main --config=configs/finetune.py:b16,cifar10 --config.init=google/ViT-B_16 --workdir=runs/cifar10
  python -m vit_jax.main --config=configs/finetune.py:any,folder --config.init=WEIGHTS \\
      --config.data.name=folder:PATH --workdir=runs/mine

The argument is MODEL,DATA:
  MODEL: ti16, s16, b16, b32, l16, l32 or h14; a hybrid: r50_b16, r50_b32, r50_l16 or r50_l32; or any, to use the
    architecture of the weights
  DATA: imagenet, cifar10, cifar100, pets, flowers, folder or a task of VTAB-1k (vtab_dtd, …: `common.VTAB`)
`init` is anything that `vit_jax.load` reads: official and big_vision .npz files, Hugging Face, timm, a run directory.

Paper: SGD, momentum 0.9, batch 512, cosine decay, gradients clipped at norm 1, no weight decay, 384 pixels; the head
starts at zero. The paper selects the learning rate on held-out training images: from 0.003, 0.01, 0.03, 0.06 for
ImageNet; from 0.001, 0.003, 0.01, 0.03 for CIFAR, Pets and Flowers; 0.01 for VTAB. The recipe uses a middle value of
each.
Later techniques, off here: --config.optim.layer_decay=0.75, --config.optim.freeze='(?!head/).*' (a linear probe),
--config.train.ema_decay=0.9999 (the paper uses Polyak averaging for its best ImageNet results; in a run of fewer than
12,000 steps with --config.train.ema_warmup=True, as the average would still be mostly what it started from),
--config.model.stochastic_depth.

Hardware: 8 TPU v3 cores or GPUs; for fewer, set --config.train.micro_batch.
Time: 500 (Pets, Flowers) to 20,000 (ImageNet) steps of 512 images.
Accuracy: the paper's, for B/16 pre-trained on ImageNet-21k (table 5), in percent: ImageNet 83.97, CIFAR-10 98.95,
CIFAR-100 91.67, Pets 94.43, Flowers 99.38; not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common


def get_config(arg: str = 'b16,cifar10') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATA'."""
  name, _, data = arg.partition(',')
  model = choices.choose(common.FINETUNE_MODELS, name, 'recipe argument MODEL')
  task = choices.choose(common.TASKS, data or 'cifar10', 'recipe argument DATA')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.init = ''
  # 384 pixels hold 27 patches of 14 pixels; the authors' patch embedding ignores the rest, so 378.
  image_size = 378 if model == 'H/14' else 384
  config.data = dict(name=task['name'], train_split=task['train'], batch_size=512, image_size=common.pixels(image_size),
                     train_transform=task.get('transform', 'inception_crop|flip'), eval_transform='resize', threads=16,
                     channels=task.get('channels'))
  # One linear layer replaces both layers of the pre-trained head (appendix B.1.1).
  config.model = dict(variant=model, representation_size=None, head_bias=0.0, dtype='bfloat16')
  config.objective = dict(loss='softmax')
  config.optim = dict(name='sgd', peak_lr=task['peak_lr'], schedule='cosine', warmup=task['warmup'], weight_decay=0.0,
                      clip_norm=1.0, options=dict(momentum=0.9, accumulator_dtype='bfloat16'))
  config.train = dict(duration=task['duration'], log_every='50 steps', eval_every=task.get('eval_every', '500 steps'))
  config.transfer = dict(reset_head=True)
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in task['evaluate'].items()}
  return config

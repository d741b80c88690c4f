"""Fine-tuning ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 4.1 and table 4).

  python -m vit_jax.main --config=configs/finetune.py:b16,cifar10 --config.init=google/ViT-B_16 --workdir=runs/cifar10
  python -m vit_jax.main --config=configs/finetune.py:any,folder --config.init=WEIGHTS \\
      --config.data.name=folder:PATH --workdir=runs/mine

The argument is MODEL,DATA: ti16, s16, b16, b32, l16, l32, h14, or any for whatever the weights are; imagenet, cifar10, cifar100, pets, flowers, folder, or a
task of VTAB-1k (vtab_dtd, …; those whose TFDS data set holds an image and its label). `init` is anything that
`vit_jax.load` reads: official and big_vision .npz, Hugging Face, timm, a workdir of ours.

Paper: SGD, momentum 0.9, batch 512, cosine decay, gradients clipped at norm 1, no weight decay, 384 pixels; the head starts
at zero. The paper chooses the learning rate on a held-out part of the training images: ImageNet 0.003, 0.01, 0.03, 0.06;
CIFAR, Pets and Flowers 0.001, 0.003, 0.01, 0.03; VTAB 0.01. Below is the middle of each.
Modern choices, off here: --config.optim.layer_decay=0.75, --config.optim.freeze='(?!head/).*' (a linear probe),
--config.train.ema_decay=0.9999 (the paper's Polyak average for its best ImageNet results), --config.model.stochastic_depth.

Hardware: 8 TPU v3 cores or GPUs (--config.train.micro_batch for fewer).
Time: 500 (Pets, Flowers) to 20,000 (ImageNet) steps of 512 images.
Accuracy (the paper's, B/16 pre-trained on ImageNet-21k, table 5; not measured by us): ImageNet 83.97, CIFAR-10 98.95,
CIFAR-100 91.67, Pets 94.43, Flowers 99.38 %.
"""
from configs import common

import ml_collections


def get_config(arg='b16,cifar10'):
  """Returns the recipe for 'MODEL,DATA'."""
  model, _, data = arg.partition(',')
  model, task = common.choose(common.FINETUNE_MODELS, model), common.choose(common.TASKS, data or 'cifar10')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.init = ''
  # The authors' patch embedding leaves out what remains of 384 pixels beside 27 patches of 14: 378.
  image_size = 378 if model == 'H/14' else 384
  config.data = dict(name=task['name'], train_split=task['train'], batch_size=512, image_size=common.pixels(image_size),
                     train_transform=task.get('transform', 'inception_crop|flip'), eval_transform='resize', threads=16)
  # Both layers of the pre-trained head go, one linear layer comes (appendix B.1.1).
  config.model = dict(variant=model, representation_size=None, head_bias=0.0, dtype='bfloat16')
  config.objective = dict(loss='softmax')
  config.optim = dict(name='sgd', peak_lr=task['peak_lr'], schedule='cosine', warmup=task['warmup'], weight_decay=0.0,
                      clip_norm=1.0, options=dict(momentum=0.9, accumulator_dtype='bfloat16'))
  config.train = dict(duration=task['duration'], log_every='50 steps', eval_every=task.get('eval_every', '500 steps'))
  config.transfer = dict(reset_head=True)
  config.evaluators = {name: dict(kind='classification', split=split) for name, split in task['evaluate'].items()}
  return config

"""SimMIM ("SimMIM: a Simple Framework for Masked Image Modeling", arXiv 2111.09886).

  python -m vit_jax.main --config=configs/simmim.py:b16,imagenet --workdir=gs://BUCKET/simmim_b16
  python -m vit_jax.main --config=configs/finetune.py:any,imagenet --config.init=gs://BUCKET/simmim_b16 \\
      --config.data.image_size=224 --workdir=gs://BUCKET/simmim_b16_imagenet

On a CPU, with the shipped digits:

  python -m vit_jax.main --config=configs/simmim.py:small,digits --workdir=runs/simmim
  python -m vit_jax.main --config=configs/digits.py --config.model.patch_size=2 --config.init=runs/simmim \\
      --workdir=runs/digits_simmim

The argument is MODEL,DATASET:
  MODEL: b16
  DATASET: imagenet, imagenet21k or jft (not public)
or, to try it, small,digits or small,fashion_mnist.

Numbers of the authors' code (microsoft/SimMIM, configs/vit_base__800ep and config.py): 800 epochs, AdamW, learning rate
1e-4 per 512 images, falling to a tenth after epoch 700, weight decay 0.05 on kernels, warm-up of 10 epochs, gradients
clipped at norm 5; squares of 32 pixels, 60 % of them hidden; crops of 67 to 100 % of the area; one table of relative
positions for all blocks and no other positions, layer scale 0.1, stochastic depth 0.1. The batch of 2,048 is that of
the README's command for Swin, 16 GPUs of 128 images.

Hardware: 16 GPUs (batch 2,048); for fewer, set --config.train.micro_batch. Digits: 2 cores of a CPU.
Time: 800 epochs: about 500,000 steps. Digits: minutes.
Accuracy: the authors' (README): ImageNet 83.8 % after fine-tuning with their settings; not measured by us.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common, digits, fashion_mnist


def get_config(arg: str = 'b16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  variant = choices.choose({'b16': 'B/16', 'small': None}, model, 'recipe argument MODEL')
  if variant is None:
    return _small(dataset)
  data = choices.choose(common.DATASETS, dataset or 'imagenet', 'recipe argument DATASET')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=2048, image_size=common.pixels(224),
      train_transform='inception_crop(area=(0.67, 1.0))|flip', eval_transform='resize_small(256)|central_crop',
      threads=16)
  config.normalization = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.model = dict(variant=variant, pool='token', position='none', relative_position='table',
                      relative_position_shared=True, layer_scale=0.1, stochastic_depth=0.1, gelu='exact',
                      dtype='bfloat16', unroll=True)
  config.objective = dict(kind='simmim', ratio=0.6, unit=2)
  config.optim = dict(name='adamw', peak_lr=1e-4 * 2048 / 512, schedule='stairs', drops=(700 / 800,),
                      warmup='10 epochs', weight_decay=0.05, decay_mask='.*/kernel', clip_norm=5.0,
                      options=dict(b1=0.9, b2=0.999))
  config.train = dict(duration='800 epochs', log_every='50 steps', eval_every='20 epochs')
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = {name: dict(kind='objective', split=split) for name, split in data['evaluate'].items()}
  return config


def _small(dataset: str) -> ml_collections.ConfigDict:
  recipes = {'digits': (digits, '100 epochs'), 'fashion_mnist': (fashion_mnist, '12 epochs')}
  recipe, duration = choices.choose(recipes, dataset or 'digits', 'recipe argument DATASET')
  # Squares of two patches would be a quarter of a digit.
  config = common.without_labels(recipe.get_config(), dict(kind='simmim', ratio=0.6, unit=1), duration)
  if recipe is digits:
    config.model.patch_size = 2
  return config

"""DINO, self-distillation without labels ("Emerging Properties in Self-Supervised Vision Transformers", 2104.14294).

  python -m vit_jax.main --config=configs/dino.py:s16,imagenet --workdir=gs://BUCKET/dino_s16

On a CPU, with the shipped digits, and what its features are worth:

  python -m vit_jax.main --config=configs/dino.py:small,digits --workdir=runs/dino
  python -m vit_jax.probe --model=runs/dino --ema --config.data.name=digits

The argument is MODEL,DATASET:
  MODEL: s16 or b16
  DATASET: imagenet, imagenet21k or jft (not public)
or, to try it, small,digits or small,fashion_mnist.

Numbers of the authors' code (facebookresearch/dino, main_dino.py, defaults): 100 epochs of batch 1,024, AdamW, learning
rate 5e-4 per 256 images, warm-up of 10 epochs, cosine decay (theirs ends at 1e-6, ours at 0), weight decay from 0.04 to
0.4 by a cosine on all but biases and LayerNorms, stochastic depth 0.1, gradients clipped at norm 3 (each parameter's
there, the whole gradient's here), 65,536 outputs, momentum of the teacher from 0.996 to 1, temperatures 0.1 and 0.04, 8
local crops of 96 pixels, the last layer frozen for an epoch. Crops cover 25 to 100 % and 5 to 25 % of the image, which
the authors use for long runs of ViT-S/16; their code's default is 40 % as the border. For long runs they let the
teacher's temperature rise to 0.07 over 30 epochs: --config.objective.teacher_temperature=0.07
--config.objective.temperature_warmup='30 epochs'.
Crops are cut from the batch's images, which have the model's size: a small crop has less detail than one cut from the
file.

Hardware: a TPU v3-8 or 16 GPUs; for fewer, set --config.train.micro_batch. Digits: 2 cores of a CPU.
Time: 1.75 days for 100 epochs of S/16 on 8 GPUs, 2.6 days for 300 on 16 (the authors' README). Digits: 2 min 18 s of
CPU time.
Accuracy: the authors' (README), ImageNet: S/16 after 100 epochs k-NN 69.3 % and linear 73.8 %; of their longer runs,
S/16 74.5 and 77.0 %, B/16 76.1 and 78.2 %; not measured by us. Digits: see docs/self_supervision.md.
"""
import ml_collections

from vit_jax.base import choices
from vit_jax.configs import common, digits, fashion_mnist

MODELS = {'s16': 'S/16', 'b16': 'B/16', 'small': None}


def get_config(arg: str = 's16,imagenet') -> ml_collections.ConfigDict:
  """Return the recipe for 'MODEL,DATASET'."""
  model, _, dataset = arg.partition(',')
  variant = choices.choose(MODELS, model, 'recipe argument MODEL')
  if variant is None:
    return _small(dataset)
  data = choices.choose(common.DATASETS, dataset or 'imagenet', 'recipe argument DATASET')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data = dict(
      name=data['name'], train_split=data['train'], batch_size=1024, image_size=common.pixels(224),
      train_transform='resize_small(224)|central_crop', eval_transform='resize_small(256)|central_crop', threads=16)
  config.normalization = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.model = dict(variant=variant, pool='token', stochastic_depth=0.1, gelu='exact', dtype='bfloat16', unroll=True)
  config.objective = dict(kind='dino', outputs=65536, global_area=(0.25, 1.0), local_crops=8, local_area=(0.05, 0.25),
                          local_size=common.pixels(96))
  config.optim = dict(name='adamw', peak_lr=5e-4 * 1024 / 256, schedule='cosine', warmup='10 epochs',
                      weight_decay=0.04, end_weight_decay=0.4, decay_mask='(?!.*(bias|scale)$).*', clip_norm=3.0)
  config.train = dict(duration='100 epochs', log_every='50 steps', eval_every='5 epochs')
  config.checkpoint = dict(every='10 minutes')
  config.evaluators = dict(knn=dict(kind='knn', data=dict(train_split='train[:5%]', test_split='validation')))
  return config


def _small(dataset: str) -> ml_collections.ConfigDict:
  recipes = {'digits': (digits, '40 epochs', 2, 4), 'fashion_mnist': (fashion_mnist, '4 epochs', 4, 12)}
  recipe, duration, patch, local_size = choices.choose(recipes, dataset or 'digits', 'recipe argument DATASET')
  # A mirrored digit is no digit, and a quarter of one is not to be told from others. Few classes need few outputs. With
  # smaller crops, 512 outputs and a teacher's temperature of 0.04 all outputs became equally likely within 200 steps.
  objective = dict(kind='dino', outputs=256, hidden=256, bottleneck=64, global_area=(0.6, 1.0), local_crops=2,
                   local_area=(0.3, 0.7), local_size=common.pixels(local_size), flip=recipe is fashion_mnist,
                   colors=0.25, blur=0.5, teacher_temperature=0.02, first_teacher_temperature=0.02, momentum=0.99)
  config = common.without_labels(recipe.get_config(), objective, duration)
  config.data.train_transform = 'resize'
  config.model.patch_size = patch
  config.optim.update(peak_lr=5e-4, clip_norm=3.0)
  config.evaluators = dict(knn=dict(kind='knn', k=(10, 20)))
  return config

"""Self-supervised and supervised pre-training on one budget: `python -m experiments.self_supervision`.

The paper's section 4.6 asks how masked patch prediction compares with supervised pre-training and with none. Here a
small ViT is pre-trained on Fashion-MNIST, or on classes of Tiny-ImageNet, by each method for the same number of images,
with the settings of its recipe. Then, on frozen features: k-NN, ridge regression on ten images per class, a linear
probe; and fine-tuning on a few labels. Supervised pre-training sees all labels, also those of the images that
fine-tuning uses, which the other methods do not.

Needs the dataset: `tfds build fashion_mnist --file_format=array_record`, or --data=folder:PATH. An
interrupted study resumes with the same command; more --seeds may be added later.
"""
from collections.abc import Sequence
import functools
import pathlib
from typing import Any

from absl import app, flags
import ml_collections

from experiments import study
from vit_jax.run import cli

# Row of the table: recipe, and what else is changed in it.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    # One step of no length: random parameters.
    'none': ('fashion_mnist', {'train.duration': '1 steps', 'optim.peak_lr': 1e-12, 'optim.warmup': '0 steps'}),
    'supervised': ('fashion_mnist', {}),
    'masked_mean_color': ('masked_patches:mean_color,fashion_mnist', {}),
    'masked_small_patch': ('masked_patches:small_patch,fashion_mnist', {}),
    'masked_pixels': ('masked_patches:pixels,fashion_mnist', {}),
    'mae': ('mae:small,fashion_mnist', {}),
    'dino': ('dino:small,fashion_mnist', {}),
}


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('data', 'fashion_mnist', 'Dataset: a TFDS name, or folder:PATH with splits train and test.')
  flags.DEFINE_string('data_dir', None, 'TFDS data directory.')
  flags.DEFINE_integer('image_size', 28, 'Pixels.')
  flags.DEFINE_integer('patch_size', 4, 'Pixels.')
  flags.DEFINE_integer('epochs', 4, 'Of pre-training.')
  flags.DEFINE_string('labeled', 'train[:1000]', 'Split to fine-tune on.')
  flags.DEFINE_string('frozen', 'train[:10000]', 'Split that classifiers on frozen features learn from.')
  flags.DEFINE_string('test', 'test', 'Split to evaluate.')
  flags.DEFINE_integer('finetune_epochs', 60, 'Of fine-tuning.')
  flags.DEFINE_integer('seeds', 1, 'Runs per method.')
  flags.DEFINE_list('methods', list(METHODS), 'Rows of the table.')
  flags.DEFINE_string('output', 'results/self_supervision', 'Directory for runs.json and table.md.')
  flags.DEFINE_string('workdir', 'runs/self_supervision', 'Directory for the runs.')


def settings() -> dict[str, Any]:
  """Return what all trials share."""
  names = ('data', 'image_size', 'patch_size', 'epochs', 'labeled', 'frozen', 'test', 'finetune_epochs')
  return {name: flags.FLAGS[name].value for name in names}


def common(shared: dict[str, Any], data_dir: str | None, seed: int) -> dict[str, Any]:
  """Return the keys that are the same in pre-training and fine-tuning."""
  return {'seed': seed, 'data.name': shared['data'], 'data.data_dir': data_dir, 'data.image_size': shared['image_size'],
          'model.patch_size': shared['patch_size'], 'checkpoint.every': '5 minutes'}


def pretraining(method: str, shared: dict[str, Any], data_dir: str | None, seed: int) -> ml_collections.ConfigDict:
  """Return the config of pre-training by a method, evaluated on frozen features once, at its end."""
  from vit_jax import recipe
  name, changes = METHODS[method]
  data = dict(train_split=shared['frozen'], test_split=shared['test'])
  evaluators = dict(knn=dict(kind='knn', data=data, k=(20,)), few_shot=dict(kind='few_shot', data=data, shots=(10,)),
                    probe=dict(kind='linear_probe', data=data, l2=(0.1, 0.01, 1e-3, 1e-4)))
  return recipe(name, **{**common(shared, data_dir, seed), 'train.duration': f'{shared["epochs"]} epochs',
                         'train.eval_every': f'{shared["epochs"]} epochs', 'evaluators': evaluators, **changes})


def finetuning(shared: dict[str, Any], data_dir: str | None, seed: int, weights: pathlib.Path) -> Any:
  """Return the config of fine-tuning all parameters on the labeled split."""
  from vit_jax import recipe
  return recipe('fashion_mnist', **{
      **common(shared, data_dir, seed), 'init': str(weights), 'transfer.reset_head': True,
      'data.train_split': shared['labeled'], 'train.duration': f'{shared["finetune_epochs"]} epochs',
      'train.eval_every': f'{shared["finetune_epochs"]} epochs', 'optim.peak_lr': 1e-3, 'optim.warmup': '6 epochs',
      'evaluators': dict(test=dict(kind='classification', split=shared['test']))})


def measure(method: str, shared: dict[str, Any], data_dir: str | None, seed: int,
            folder: pathlib.Path) -> study.Numbers:
  """Pre-train, measure frozen features, fine-tune; return accuracies in percent."""
  from vit_jax import train
  frozen = train.run(pretraining(method, shared, data_dir, seed), folder / 'pretrain')
  tuned = train.run(finetuning(shared, data_dir, seed, folder / 'pretrain'), folder / 'finetune')
  return {'20-NN': 100 * frozen['knn/k20'], '10-shot': 100 * frozen['few_shot/10shot'],
          'linear probe': 100 * frozen['probe/accuracy'], 'fine-tuned': 100 * tuned['test/accuracy']}


def main(argv: Sequence[str]) -> None:
  """Run what is missing, and print the table."""
  cli.no_arguments(list(argv))
  values, shared = flags.FLAGS, settings()
  trials = [study.Trial(method, seed, functools.partial(measure, method, shared, values.data_dir, seed))
            for seed in range(values.seeds) for method in values.methods]
  cli.set_up_compiler()
  print(cli.call(study.run, trials, shared, values.output, values.workdir))


if __name__ == '__main__':
  define_flags()
  app.run(main)

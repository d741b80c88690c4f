"""The 1,000 classes of ImageNet-1k in their usual order, that of the WordNet ids."""
from collections.abc import Sequence
import dataclasses
import functools
import importlib.resources
import os
import re

from vit_jax.base.files import PathLike
from vit_jax.pretrained.formats.base import Configs
from vit_jax.pretrained.formats.weights import Weights

NUM_CLASSES = 1000
GUESS = 'class names: not in the file; guessed to be'  # how a note begins
# In a timm tag ('augreg_in21k_ft_in1k'), in the names of Google's folders ('imagenet21k+imagenet2012') and files
# ('…--imagenet2012-steps_20k'), of big_vision's ('vit_s16_i1k_300ep') and of others' ('imagenet-1k', 'ilsvrc2012').
_SAYS_IMAGENET = re.compile(r'(?<![a-z0-9])(in1k|i1k|imagenet-?1k|imagenet2012|ilsvrc-?2012)(?![a-z0-9])')
_FILE = 'imagenet1k.txt'


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
  """Return ((WordNet id, names), …)."""
  text = importlib.resources.files('vit_jax.pretrained.classes').joinpath(_FILE).read_text(encoding='utf-8')
  pairs = (line.partition('\t') for line in text.splitlines() if not line.startswith('#'))
  return tuple((wordnet_id, name) for wordnet_id, _, name in pairs)


def ids() -> tuple[str, ...]:
  """Return the WordNet ids, the usual names of the folders.

  >>> ids()[:2]
  ('n01440764', 'n01443537')
  """
  return tuple(wordnet_id for wordnet_id, _ in _rows())


def names() -> tuple[str, ...]:
  """Return the names as Hugging Face has them: synonyms with commas between them; two classes are called 'crane'.

  >>> names()[:2]
  ('tench, Tinca tinca', 'goldfish, Carassius auratus')
  """
  return tuple(name for _, name in _rows())


def to_ids(class_names: Sequence[str]) -> tuple[str, ...]:
  """Return class names as WordNet ids if all of them are names of ImageNet-1k that mean one class, else as they are."""
  given = tuple(class_names)
  if given == names():
    return ids()
  unique = {name: wordnet_id for wordnet_id, name in _rows() if names().count(name) == 1}
  known = unique if len(given) == NUM_CLASSES else {}
  return tuple(known[name] for name in given) if set(given) <= set(known) else given


def is_said_by(text: str) -> bool:
  """Return whether a file name, folder or tag says that a model classifies ImageNet-1k.

  >>> is_said_by('timm:vit_base_patch16_224.augreg_in21k_ft_in1k'), is_said_by('imagenet21k/ViT-B_16.npz')
  (True, False)
  """
  return bool(_SAYS_IMAGENET.search(text.lower().replace('_', ' ')))


def with_stated_names(weights: Weights, configs: Configs) -> Weights:
  """Return weights with ImageNet's names if timm's config says that its 1,000 classes are these; see `with_names`."""
  tag = str((configs.get('config.json', {}).get('pretrained_cfg') or {}).get('tag', ''))
  return with_names(weights, tag) if is_said_by(tag) else weights


def with_names(weights: Weights, source: PathLike) -> Weights:
  """Return weights with ImageNet's names if they have 1,000 classes and no names, and a note that says so.

  Args:
    weights: as read.
    source: what they were read from; its name may say that it is ImageNet.
  """
  if weights.class_names or weights.config.num_classes != NUM_CLASSES:
    return weights
  said = is_said_by(os.fspath(source))
  note = (f'class names: those of ImageNet-1k, as the name {os.fspath(source)} says' if said else
          f'{GUESS} those of ImageNet-1k in the usual order, as there are 1,000 classes; give others '
          'with class_names=, on the command line --classes=FILE')
  return dataclasses.replace(weights, class_names=names(), notes=(*weights.notes, note))

"""The table of figures: what each needs, how it is made from a study, and what it shows."""
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from vit_jax.analysis import filters, position_similarity, probe, rollout
from vit_jax.analysis.measure import Measurements
from vit_jax.analysis.report import plots
from vit_jax.base.text import count
from vit_jax.statistics import attention
from vit_jax.statistics.tokens import OUTLIER_FACTOR

TILES = 7  # rows and columns of positions that are compared with all; as many as the paper's L/32 has


@dataclasses.dataclass
class Subject:
  """A model that is studied.

  Attributes:
    name: for titles; different for each model.
    model: a loaded one.
    no_attention: why it has no attention weights from all tokens to all; None: it has.
    measured: on all images.
    examples: some images, (count, rows, columns, channels) uint8, as the model sees them.
  """
  name: str
  model: Any
  no_attention: str | None
  measured: Measurements
  examples: np.ndarray


@dataclasses.dataclass
class Study:
  """One or two models, and what was measured on the same images.

  Attributes:
    subjects: the models.
    cka: between the layers of each model, and from the first to the second; see `measure.measure`.
    classes: of each image.
  """
  subjects: list[Subject]
  cka: list[np.ndarray]
  classes: list[str]


@dataclasses.dataclass
class Made:
  """A figure.

  Attributes:
    drawing: of matplotlib; None if it applies to no model.
    arrays: the numbers, by name; of a second model with '_2' at the end.
    missing: {model: why it is not in the figure}.
    note: what the text should add, such as the number of images.
  """
  drawing: Any
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of figure.

  Attributes:
    title: its heading.
    text: what is seen.
    source: where it is from.
    make: a study to the figure.
    quantities: those of `measure.QUANTITIES` that it needs.
  """
  title: str
  text: str
  source: str
  make: Callable[[Study], Made]
  quantities: tuple[str, ...] = ()


def _make(study: Study, values: Mapping[str, np.ndarray | None], reason: Callable[[Subject], str], name: str,
          draw: Callable[[Any], Any]) -> Made:
  """Return a figure of those models that have a value; of the others it says why they have none."""
  present = {key: value for key, value in values.items() if value is not None}
  missing = {subject.name: reason(subject) for subject in study.subjects if subject.name not in present}
  return Made(draw(present) if present else None, _arrays(study, {name: present}), missing)


def _arrays(study: Study, by_quantity: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  suffixes = {subject.name: '_2' if number else '' for number, subject in enumerate(study.subjects)}
  return {f'{quantity}{suffixes[model]}': value for quantity, values in by_quantity.items()
          for model, value in values.items()}


def _filters(study: Study) -> Made:
  found = {subject.name: filters.components(subject.model) for subject in study.subjects}
  drawing = plots.draw_filters({name: filters.to_pictures(values) for name, values in found.items()})
  channels = {subject.model.channels for subject in study.subjects} - {1, 3}
  note = 'Shown are the first three channels, as red, green and blue.' if channels else ''
  return Made(drawing, _arrays(study, {'components': found}), note=note)


def _positions(study: Study) -> Made:
  grids = {subject.name: position_similarity.grid_of(subject.model) for subject in study.subjects}
  tiles = {name: None if grid is None else position_similarity.similarities(grid, TILES)
           for name, grid in grids.items()}
  return _make(study, tiles, lambda subject: 'has no position embeddings of patches', 'similarities',
               plots.draw_positions)


def _heads(study: Study, name: str, label: str, uniform: Callable[[Any], float]) -> Made:
  references = {subject.name: uniform(subject.model.config) for subject in study.subjects if not subject.no_attention}
  return _make(study, {subject.name: getattr(subject.measured, name) for subject in study.subjects},
               lambda subject: subject.no_attention or '', name,
               lambda values: plots.draw_heads(values, references, label))


def _distance(study: Study) -> Made:
  # Among patches, all tokens being attended to alike: what goes to the prefix counts as distance 0.
  uniform = lambda config: float(attention.distances(config.grid, config.patch_pixels).sum(axis=1).mean()
                                 / config.num_tokens)
  return _heads(study, 'distance', 'mean attention distance (pixels)', uniform)


def _entropy(study: Study) -> Made:
  return _heads(study, 'entropy', 'entropy of the attention (nats)', lambda config: math.log(config.num_tokens))


def _rollout(study: Study) -> Made:
  maps, overlays = {}, {}
  for subject in study.subjects:
    if subject.no_attention:
      continue
    run = rollout.make_rollout(subject.model)
    maps[subject.name] = np.stack([run(image) for image in subject.examples])
    overlays[subject.name] = np.stack([rollout.overlay(image, found, subject.model.config.patch_pixels)
                                       for image, found in zip(subject.examples, maps[subject.name], strict=True)])
  missing = {subject.name: subject.no_attention for subject in study.subjects if subject.no_attention}
  if not maps:
    return Made(None, missing=missing)
  first = next(subject for subject in study.subjects if subject.name in maps)
  images = np.stack([rollout.to_rgb(image) for image in first.examples])
  return Made(plots.draw_rollout(images, overlays), _arrays(study, {'maps': maps}), missing)


def _norms(study: Study) -> Made:
  return _make(study, {subject.name: subject.measured.norms for subject in study.subjects}, lambda subject: '', 'norms',
               plots.draw_norms)


def _cka(study: Study) -> Made:
  names = [subject.name for subject in study.subjects]
  if not study.cka:
    return Made(None, missing=dict.fromkeys(names, 'needs at least 4 readable images'))
  pairs = [(names[0], names[0]), (names[-1], names[-1]), (names[0], names[-1])]
  found = dict(zip(pairs[:len(study.cka)], study.cka, strict=True)) if len(names) > 1 else {pairs[0]: study.cka[0]}
  arrays: dict[str, np.ndarray] = dict(zip(('cka', 'cka_2', 'cka_between'), study.cka, strict=False))
  return Made(plots.draw_cka(found), arrays)


def _probe(study: Study) -> Made:
  if reason := probe.why_not(study.classes):
    return Made(None, missing={subject.name: reason for subject in study.subjects})
  found, arrays = {}, {'patches': {}, 'class_token': {}}
  for subject in study.subjects:
    for key, kind, layers in (('patches', 'mean of patches', subject.measured.pooled),
                              ('class_token', 'class token', subject.measured.class_tokens)):
      if layers:
        found[subject.name, kind] = arrays[key][subject.name] = probe.accuracies(layers, study.classes)
  train, test = probe.split(study.classes)
  held_out = np.array(study.classes)[test]
  chance = float(np.unique(held_out, return_counts=True)[1].max() / len(held_out))
  note = (f'{count(len(train), "image")} train the classifiers, {len(test):,} are held out; an accuracy of 50 % on '
          f'them has a standard error of {50 / math.sqrt(len(test)):.1f} points.')
  return Made(plots.draw_probe(found, chance), _arrays(study, arrays), note=note)


FIGURES: Mapping[str, Kind] = {
    'filters': Kind(
        'Filters of the first layer',
        'Principal components of the filters that are applied to the pixels, each scaled to the full range of colors; '
        'the one with the largest variance first. Trained filters look like the basis of a low-dimensional description '
        'of the fine structure of a patch, untrained ones like noise.',
        'Paper, figure 7, left.', _filters),
    'positions': Kind(
        'Similarity of position embeddings',
        'Each tile belongs to the patch at its place in the image and shows the cosine similarity of its position '
        'embedding with those of all patches. In a trained model near patches are similar, and often those of the same '
        'row or column.',
        'Paper, figure 7, center.', _positions),
    'distance': Kind(
        'Mean attention distance',
        'Each point is a head: the distance in the image, weighted with the attention, between a patch and the patches '
        'that it attends to, averaged over patches and images. It is like the size of a receptive field. Attention to '
        'class token and registers counts as distance 0. The dashed line is a head that attends to all tokens alike.',
        'Paper, figure 7, right, figure 11 and appendix D.7; the class token is treated as in arXiv 2108.08810.',
        _distance, ('attention',)),
    'entropy': Kind(
        'Entropy of the attention',
        'Each point is a head: the entropy of its attention weights, averaged over tokens and images. 0 is a head that '
        'attends to one token only; the dashed line is one that attends to all alike.',
        'Not in the paper.', _entropy, ('attention',)),
    'rollout': Kind(
        'Attention Rollout',
        'What the output attends to in the input, through all layers: bright places contribute most. The weights of '
        'each layer are averaged over the heads, mixed with the identity for the residual connection, and multiplied. '
        'For a model without class token, the mean over all patches is shown. Every picture has its own scale, so that '
        'a model that attends to everything alike still shows bright and dark places.',
        'Paper, figures 6 and 14, appendix D.8; Attention Rollout is arXiv 2005.00928.', _rollout),
    'norms': Kind(
        'Norms of patch tokens',
        'Left: Euclidean norms of the patch tokens by layer, averaged over images: median, the range from 5 % to 95 %, '
        'and dotted the largest of an image. Right: the share of outliers, whose norm is above '
        f"{OUTLIER_FACTOR:g} times their image's median. Large models without registers come to have such outliers in "
        'places of little detail.',
        'Not in the paper; "Vision Transformers Need Registers", arXiv 2309.16588. The threshold is our own.',
        _norms, ('norms',)),
    'cka': Kind(
        'Similarity of layers',
        'Linear centered kernel alignment of the tokens of any two layers: 1 means equal up to rotation and scale, 0 '
        'unrelated. Estimated without bias from batches of images.',
        'Not in the paper; arXiv 1905.00414, by batches as in arXiv 2010.15327, of Vision Transformers in arXiv '
        '2108.08810.', _cka, ('grams',)),
    'probe': Kind(
        'Accuracy of a linear classifier by layer',
        'A logistic regression on the features of each layer, with the names of the folders as classes, measured on '
        'images that it was not trained on. If the model itself was trained on them, the accuracy on new images is '
        'lower.',
        'Not in the paper; arXiv 1610.01644.', _probe, ('pooled',)),
}

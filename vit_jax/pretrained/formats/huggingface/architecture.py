"""What all Vision Transformers of transformers have in common: an architecture is a table of names, and a few facts."""
from collections.abc import Callable, Collection, Iterator, Mapping
import dataclasses
import re
from typing import Any

from vit_jax.base import sections
from vit_jax.base.text import listing
from vit_jax.models.config import GATED_MLPS, ViTConfig
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable
from vit_jax.pretrained.formats.base import Configs, Written
from vit_jax.pretrained.formats.huggingface import config as config_lib
from vit_jax.pretrained.formats.huggingface import preprocessing
from vit_jax.pretrained.formats.leaves import Table, torch_linear_leaves
from vit_jax.pretrained.formats.weights import Weights

Keys = Mapping[str, Any]
# Arrays of a model's head; all others are its backbone's.
HEADS = ('classifier.', 'cls_classifier.', 'distillation_classifier.', 'visual_projection.')
MLP = {**torch_linear_leaves('mlp/up', 'mlp.fc1'), **torch_linear_leaves('mlp/down', 'mlp.fc2')}


def attention(names: tuple[str, str, str, str]) -> Table:
  """Return the leaves of an attention whose projections have these names: query, key, value, output."""
  table: Table = {}
  for ours, theirs in zip(('query', 'key', 'value', 'out'), names, strict=True):
    table.update(torch_linear_leaves(f'attention/{ours}', theirs, inputs=2 if ours == 'out' else 1))
  return table


class _Any:
  """Contains everything: a field that may have any value."""

  def __contains__(self, value: object) -> bool:
    return True

  def __iter__(self) -> Iterator[Any]:
    return iter(())

  def __len__(self) -> int:
    return 0


ANY = _Any()
# What an architecture can hold unless it says more.
_PLAIN: Mapping[str, Collection[Any]] = dict(
    registers=(0,), layer_scale=(None,), qk_norm=(False,), representation_size=(None,), norm_after_pool=(False,),
    resnet=(None,))


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One architecture of transformers.

  Attributes:
    model_type: as in config.json.
    model_class: config → name of the class that loads the model.
    processor: name of the class of its image processor.
    prefix: of the backbone's arrays in a model with a head.
    table: {our path: Leaf} outside the blocks, names without that prefix.
    block: the leaves of a block but its MLP.
    layer: prefix of a block, with `{i}` for its number.
    mlps: the leaves of the MLP, as (whether it is gated, table); a file has those of the first that is in it.
    gate_key: key of config.json that says whether the MLP is gated; None: it never is.
    positions: name of the position embeddings.
    resize_method: how they are resized, a name of `resize.METHODS`; None: as in most architectures.
    position_axes: axes of length 1 before them.
    position: kinds of position embeddings that it can hold, a learned table if none.
    has_classifier: whether there is a class with a classifier.
    scaled: whether blocks always have scales on their branches.
    marker: end of the name of an array that tells it from others of the same model_type; None: there is none.
    defaults: what transformers takes for keys that a config.json lacks.
    only: {key: values} of config.json that vit_jax can compute.
    renamed: (pattern, replacement) that turn names of the model in memory into those in files.
    left_out: names in the file → {pattern: why} of arrays that the model does not use.
    fixed: config fields that all models of this architecture have.
    fields: (has, keys) → config fields that depend on the file; `has(path)` is whether it has the array of a leaf.
    keys: config → keys of config.json in addition to the common ones, or in place of them.
    dropped: common keys that it does not have.
    wrapped: (keys, config) → config.json, for keys that are not at its top.
    allowed: config → {config field: values} that it can hold in addition to `fixed`.
  """
  model_type: str
  model_class: Callable[[ViTConfig], str]
  processor: str
  prefix: str
  table: Table
  block: Table
  layer: str
  mlps: tuple[tuple[bool, Table], ...]
  gate_key: str | None = None
  positions: str = 'embeddings.position_embeddings'
  resize_method: str | None = None
  position_axes: int = 1
  position: tuple[str | None, ...] = ('learned',)
  has_classifier: bool = True
  scaled: bool = False
  marker: str | None = None
  defaults: Keys = dataclasses.field(default_factory=dict)
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  renamed: tuple[tuple[str, str], ...] = ()
  left_out: Callable[[Collection[str]], Mapping[str, str]] = lambda names: {}
  fixed: Keys = dataclasses.field(default_factory=dict)
  fields: Callable[[Callable[[str], bool], Keys], dict[str, Any]] = lambda has, keys: {}
  keys: Callable[[ViTConfig], dict[str, Any]] = lambda config: {}
  dropped: Collection[str] = ()
  wrapped: Callable[[dict[str, Any], ViTConfig], dict[str, Any]] = lambda keys, config: keys
  allowed: Callable[[ViTConfig], Mapping[str, Collection[Any]]] = lambda config: {}

  def leaves(self, mlp: Table) -> Table:
    """Return the table of a model with this MLP."""
    return {**self.table, **leaves.prefixed({**self.block, **mlp}, leaves.BLOCKS, self.layer)}

  def read(self, tensors: Tensors, keys: Keys, configs: Configs) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      keys: of its config.json.
      configs: all config files beside it.

    Raises:
      UserError: it is damaged, or holds something that vit_jax does not have.
    """
    notes: list[str] = []
    keys = {**self.defaults, **keys}
    for key, values in self.only.items():
      if keys.get(key, values[0]) not in values:
        raise tensors.error(f'{key}: its config.json says {keys[key]!r}, which vit_jax does not have for '
                            f'{self.model_type}')
    tensors = self._renamed(tensors, notes)
    gated = bool(self.gate_key and keys.get(self.gate_key))
    mlp = self._find_mlp(tensors, gated)
    table = self.leaves(mlp)
    fields = self._read_fields(tensors, keys, table, gated)
    config_lib.check(tensors, {key: value for key, value in keys.items() if key not in self.dropped}, fields)
    prepared = preprocessing.read(tensors, configs.get(preprocessing.FILE), fields['image_size'],
                                  fields['channels'], notes)
    return leaves.read_weights(
        tensors, fields, table, self.positions, self.position_axes, notes=tuple(notes), preprocessing=prepared,
        class_names=config_lib.class_names(keys, fields['num_classes']), loss=config_lib.loss(tensors, keys),
        architecture=self.model_type, resize_method=self.resize_method)

  def write(self, weights: Weights) -> Written:
    """Lay weights out in this architecture.

    Raises:
      UserError: it cannot hold the model; the message names the config field.
    """
    weights = self._prepared(weights)
    config = weights.config
    allowed = {**_PLAIN, **{field: (value,) for field, value in self.fixed.items()}, **self.allowed(config)}
    classes = {} if self.has_classifier else dict(num_classes=(None,))
    representable.require(weights, 'huggingface', **{**allowed, **classes})
    mlp = next((table for gated, table in self.mlps if gated == (config.mlp in GATED_MLPS)), None)
    if mlp is None:
      representable.require(weights, 'huggingface', mlp=('gelu',))
    arrays = leaves.to_arrays(weights, self.leaves(mlp or {}), self.positions, self.position_axes)
    prefix = self.prefix if any(name.startswith(HEADS) for name in arrays) else ''
    arrays = {name if name.startswith(HEADS) else prefix + name: array for name, array in arrays.items()}
    keys = {**config_lib.write(weights, self.model_type, self.model_class(config)), **self.keys(config)}
    keys = self.wrapped({key: value for key, value in keys.items() if key not in self.dropped}, config)
    notes = list(weights.notes)
    configs = {'config.json': keys, preprocessing.FILE: preprocessing.write(weights, notes, self.processor)}
    return Written(arrays, configs, dataclasses.replace(weights, notes=tuple(notes)))

  def _prepared(self, weights: Weights) -> Weights:
    """Return the same model with the parameters that this architecture always has, and without those it never has."""
    weights = representable.learned_positions(representable.norm_before_pool(weights), self.position)
    if weights.config.position == 'learned':
      weights = representable.token_position(weights)
    if self.fixed.get('key_bias'):
      weights = representable.key_bias(weights)
    if 'mask_token' in self.fixed:
      weights = representable.mask_token(weights, self.fixed['mask_token'])
    if self.scaled:
      weights = representable.layer_scale(weights)
    return weights

  def _renamed(self, tensors: Tensors, notes: list[str]) -> Tensors:
    """Return the arrays under their names in files, without prefix; those that the model does not use are left out."""
    left_out = self.left_out(tensors.shapes)
    for pattern, why in left_out.items():
      if found := sorted(name for name in tensors.shapes if re.match(pattern, name)):
        notes.append(f'left out: {listing(found)} ({why})')

    def new_name(name: str) -> str | None:
      unused = 0 in tensors.shapes[name] or any(re.match(pattern, name) for pattern in left_out)
      return None if unused else self._name(name)

    return tensors.rename(new_name)

  def _name(self, name: str) -> str:
    name = name.removeprefix(self.prefix)
    for pattern, replacement in self.renamed:
      name = re.sub(pattern, replacement, name)
    return name

  def _find_mlp(self, tensors: Tensors, gated: bool) -> Table:
    tables = [table for is_gated, table in self.mlps if is_gated == gated]
    for table in tables:
      if self.layer.format(i=0) + table['mlp/up/kernel'].name in tensors:
        return table
    return tables[0]

  def _read_fields(self, tensors: Tensors, keys: Keys, table: Table, gated: bool) -> dict[str, Any]:
    def has(path: str) -> bool:
      return path in table and table[path].name.format(i=0) in tensors

    def shape(path: str, axes: int) -> tuple[int, ...]:
      return tensors.shape(table[path].name.format(i=0), axes)

    up = f'{leaves.BLOCKS}mlp/up/kernel'
    return {
        **_read_stem(tensors, table['patch_embed/kernel'].name, keys),
        **config_lib.read_fields(tensors, keys, gated),
        'depth': infer.depth(tensors, re.escape(self.layer).replace(r'\{i\}', r'(\d+)')),
        'mlp_dim': shape(up, 2)[0] // table[up].part[1],
        'class_token': 'token' in table, 'mask_token': has('mask_token'),
        'registers': shape('registers', 3)[1] if has('registers') else 0,
        'representation_size': shape('pre_logits/kernel', 2)[0] if has('pre_logits/kernel') else None,
        'projection_size': shape('projection/kernel', 2)[0] if has('projection/kernel') else None,
        'num_classes': shape('head/kernel', 2)[0] if has('head/kernel') else None,
        **self.fixed, **self.fields(has, keys)}


def _read_stem(tensors: Tensors, name: str, keys: Keys) -> dict[str, Any]:
  """Return width, channels and patch size, from a convolution or a linear layer over the pixels of a patch."""
  if len(tensors.shape(name)) != 2:
    width, channels, *patch_size = tensors.shape(name, 4)
    return dict(width=width, channels=channels, patch_size=tuple(patch_size))
  width, pixels = tensors.shape(name, 2)
  rows, columns = sections.size(keys['patch_size'], 'patch_size')
  if pixels % (rows * columns):
    raise tensors.error(f'patch_size: its config.json says {(rows, columns)}, but {name} has {pixels} inputs')
  return dict(width=width, channels=pixels // (rows * columns), patch_size=(rows, columns))

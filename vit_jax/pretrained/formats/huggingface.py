"""Hugging Face `ViTForImageClassification` and `ViTModel`: model.safetensors, config.json, preprocessor_config.json."""
from vit_jax.base import sections
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats import representable
from vit_jax.pretrained.formats.leaves import Leaf, SAME, TORCH_CONV, TORCH_FLAT, leading, torch_linear

SUFFIX = '.safetensors'
METHOD = 'bicubic'
POSITIONS = 'embeddings.position_embeddings'
# transformers/activations.py; gelu_new and gelu_fast are the tanh form in other words.
_GELUS = {'gelu': 'exact', 'gelu_new': 'tanh', 'gelu_fast': 'tanh', 'gelu_pytorch_tanh': 'tanh'}
# PIL.Image.Resampling.
_INTERPOLATIONS = {2: 'bilinear', 3: 'bicubic'}


def _linear(ours, theirs, inputs=1):
  return {f'{ours}/kernel': Leaf(f'{theirs}.weight', torch_linear(inputs)),
          f'{ours}/bias': Leaf(f'{theirs}.bias', TORCH_FLAT)}


def _norm(ours, theirs):
  return {f'{ours}/scale': Leaf(f'{theirs}.weight', SAME), f'{ours}/bias': Leaf(f'{theirs}.bias', SAME)}


_BLOCK = {
    **_norm('attention_norm', 'layernorm_before'),
    **_linear('attention/query', 'attention.attention.query'),
    **_linear('attention/key', 'attention.attention.key'),
    **_linear('attention/value', 'attention.attention.value'),
    **_linear('attention/out', 'attention.output.dense', inputs=2),
    **_norm('mlp_norm', 'layernorm_after'),
    **_linear('mlp/up', 'intermediate.dense'),
    **_linear('mlp/down', 'output.dense'),
}
_TABLE = {
    'patch_embed/kernel': Leaf('embeddings.patch_embeddings.projection.weight', TORCH_CONV),
    'patch_embed/bias': Leaf('embeddings.patch_embeddings.projection.bias', SAME),
    'token': Leaf('embeddings.cls_token', leading(2)),
    **leaves.renamed(_BLOCK, leaves.BLOCKS, 'encoder.layer.{i}.'),
    **_norm('norm', 'layernorm'),
    **_linear('pre_logits', 'pooler.dense'),
    **_linear('head', 'classifier'),
}


def matches(names):
  """Whether a file with these names is a ViT of Hugging Face's."""
  return any(name.removeprefix('vit.') == _TABLE['patch_embed/kernel'].name for name in names)


def read(tensors, configs, image_size=None):
  """Reads the `Weights` of a file.

  Args:
    tensors: the open file.
    configs: {'config.json': dict, and 'preprocessor_config.json': dict if there}.
    image_size: unused, the config tells.

  Raises:
    ValueError: no config.json, or one of a model that is not a plain ViT.
  """
  del image_size
  config = configs.get('config.json')
  if config is None:
    raise tensors.error('a Hugging Face model needs its config.json beside it (heads, LayerNorm epsilon, class names)')
  notes = []
  tensors = _renamed(tensors, notes)
  fields = _fields(tensors, config)
  return leaves.read(tensors, fields, _TABLE, POSITIONS, source='huggingface', notes=tuple(notes),
                     class_names=_class_names(config, fields['num_classes']),
                     preprocessing=_preprocessing(tensors, fields, configs.get('preprocessor_config.json')))


def write(weights, approximate=False):
  """Lays out `weights` as such a file.

  Args:
    weights: to be written.
    approximate: unused; the config holds GELU form and LayerNorm epsilon.

  Returns:
    ({name: array}, {file name: config dict}, weights as they were written).

  Raises:
    ValueError: names a field that these files cannot hold.
  """
  del approximate
  weights = representable.norm_before_pool(weights)
  fields = weights.fields
  headless = fields['num_classes'] is None
  representable.require(weights, 'huggingface', pool=('token',), registers=(0,), layer_scale=(None,), qk_norm=(False,),
                        **({} if headless else dict(representation_size=(None,))))
  weights = representable.token_position(representable.learned_positions(weights))
  arrays = leaves.spread(weights, _TABLE, POSITIONS)
  if not headless:
    arrays = {name if name.startswith('classifier.') else f'vit.{name}': array for name, array in arrays.items()}
  return arrays, {'config.json': _config(weights), 'preprocessor_config.json': _preprocessor(weights)}, weights


def _renamed(tensors, notes):
  """Names without `vit.`; a pooler beside a classifier, which nothing reads, is left out."""
  pooler = [name for name in tensors.shapes if name.startswith('vit.pooler.') and 'classifier.weight' in tensors]
  notes.extend(f'left out: {name} (nothing reads it in a classifier)' for name in pooler)
  return tensors.rename(lambda name: None if name in pooler else name.removeprefix('vit.'))


def _fields(tensors, config):
  if config.get('model_type', 'vit') != 'vit':
    raise tensors.error(f"its config.json is of a {config['model_type']!r} model; expected 'vit'")
  gelu = config.get('hidden_act', 'gelu')
  if gelu not in _GELUS or config.get('pooler_act', 'tanh') != 'tanh':
    raise tensors.error(f'unknown hidden_act {gelu!r} or pooler_act; choose from {sorted(_GELUS)} and tanh')
  width, channels, *patch_size = tensors.shape(_TABLE['patch_embed/kernel'].name, 4)
  fields = dict(
      width=width, channels=channels, patch_size=tuple(patch_size),
      depth=infer.depth(tensors, r'encoder\.layer\.(\d+)\.'),
      mlp_dim=tensors.shape('encoder.layer.0.intermediate.dense.weight', 2)[0],
      qkv_bias='encoder.layer.0.attention.attention.query.bias' in tensors,
      representation_size=tensors.shape('pooler.dense.weight', 2)[0] if 'pooler.dense.weight' in tensors else None,
      num_classes=tensors.shape('classifier.weight', 2)[0] if 'classifier.weight' in tensors else None,
      heads=config.get('num_attention_heads', 0), gelu=_GELUS[gelu],
      norm_epsilon=float(config.get('layer_norm_eps', 1e-12)), image_size=sections.size(config.get('image_size', 224), 'image_size'))
  if not 0 <= fields['norm_epsilon'] < 1:
    raise tensors.error(f"its config.json says layer_norm_eps={config['layer_norm_eps']!r}; expected a small number")
  stated = dict(width='hidden_size', channels='num_channels', mlp_dim='intermediate_size', depth='num_hidden_layers')
  for field, key in stated.items():
    if config.get(key, fields[field]) != fields[field]:
      raise tensors.error(f'its config.json says {key}={config[key]!r}, its arrays {fields[field]}')
  return fields


def _class_names(config, num_classes):
  names = config.get('id2label') or {}
  names = [names.get(str(i)) for i in range(num_classes or 0)]
  # LABEL_0, LABEL_1, … is how transformers says that it does not know.
  generic = all(name is None or name == f'LABEL_{i}' for i, name in enumerate(names))
  return None if generic else tuple(str(i) if name is None else str(name) for i, name in enumerate(names))


def _preprocessing(tensors, fields, config):
  """ViTImageProcessor squashes to `size`; processors with a shortest edge keep the aspect and crop."""
  if not config:
    return Preprocessing()
  interpolation = _INTERPOLATIONS.get(config.get('resample', 2), 'bilinear')
  argument = [] if interpolation == 'bilinear' else [f"interpolation='{interpolation}'"]
  size = config.get('size')
  if isinstance(size, dict) and 'shortest_edge' in size:
    transform = f'resize_small({", ".join([str(int(size["shortest_edge"])), *argument])})|central_crop'
  else:
    transform = f'resize({argument[0]})' if argument else 'resize'
  if not config.get('do_normalize', True):
    return Preprocessing(transform, 0.0, 1.0)
  return Preprocessing(transform, *(
      infer.statistic(tensors, config.get(f'image_{name}', 0.5), fields['channels'], name) for name in ('mean', 'std')))


def _config(weights):
  fields, names = weights.fields, weights.class_names
  labels = names or [f'LABEL_{i}' for i in range(fields['num_classes'] or 0)]
  rows, columns = fields['image_size']
  return {
      'architectures': ['ViTModel' if fields['num_classes'] is None else 'ViTForImageClassification'],
      'model_type': 'vit', 'hidden_size': fields['width'], 'num_hidden_layers': fields['depth'],
      'num_attention_heads': fields['heads'], 'intermediate_size': fields['mlp_dim'],
      'hidden_act': 'gelu' if fields['gelu'] == 'exact' else 'gelu_pytorch_tanh',
      'layer_norm_eps': fields['norm_epsilon'],
      'image_size': rows if rows == columns else [rows, columns],
      'patch_size': fields['patch_size'][0] if len(set(fields['patch_size'])) == 1 else list(fields['patch_size']),
      'num_channels': fields['channels'], 'qkv_bias': fields['qkv_bias'], 'pooler_act': 'tanh',
      'pooler_output_size': fields['representation_size'] or fields['width'],
      'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0, 'dtype': 'float32',
      'id2label': {str(i): name for i, name in enumerate(labels)},
      'label2id': {name: i for i, name in enumerate(labels)}}


def _preprocessor(weights):
  rows, columns = weights.fields['image_size']
  each = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * weights.fields['channels']
  return {'image_processor_type': 'ViTImageProcessor', 'do_resize': True, 'size': {'height': rows, 'width': columns},
          'resample': 3 if 'bicubic' in weights.preprocessing.transform else 2, 'do_rescale': True,
          'rescale_factor': 1 / 255, 'do_normalize': True,
          'image_mean': each(weights.preprocessing.mean), 'image_std': each(weights.preprocessing.std)}

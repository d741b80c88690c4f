"""The ViT against the authors' code (golden outputs), a plain NumPy forward pass and the published numbers."""
import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.models import attention, encoder, layers
from vit_jax.models.config import ViTConfig
from vit_jax.models.positions import embeddings
from vit_jax.models.vit import VisionTransformer

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'
TINY = dict(image_size=16, patch_size=4, width=24, depth=2, heads=3, mlp_dim=48, num_classes=7)


def create(**fields):
  return VisionTransformer(ViTConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0))


def make(**fields):
  """Return an abstract model, which is cheap: most tests bring their own parameters."""
  return nnx.eval_shape(lambda: create(**fields))


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_params(model, params):
  graphdef, _ = nnx.split(model)
  return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def randomized(model, seed=1):
  """Return the model with random parameters, none of them zero, so that each affects the output (head, biases)."""
  rng = np.random.default_rng(seed)
  draw = lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32)
  params = jax.tree_util.tree_map_with_path(
      lambda path, x: draw(x) + (path[-1].key == 'scale'), params_of(model))
  return with_params(model, params)


def pictures(batch=4, rows=16, columns=16, channels=3, seed=2):
  return np.random.default_rng(seed).normal(size=(batch, rows, columns, channels)).astype(np.float32)


def keys(batch=4, seed=0):
  return jax.random.split(jax.random.key(seed), batch)


@nnx.jit
def forward(model, images, rngs=None):
  return model(images, rngs)


# Parameter counts: the paper's formula and the constants that the authors' models_test.py asserts.


def count(variant, **fields):
  make_model = lambda: VisionTransformer(ViTConfig(variant=variant, **fields), rngs=nnx.Rngs(0))
  return sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(make_model), nnx.Param)))


@pytest.mark.parametrize('variant, at_224, at_384', [
    ('Ti/16', 5_717_416, 5_790_376),
    ('S/16', 22_050_664, 22_196_584),
    ('S/32', 22_878_952, 22_915_432),
    ('B/8', 86_576_872, 87_744_232),
    ('B/16', 86_567_656, 86_859_496),
    ('B/32', 88_224_232, 88_297_192),
    ('L/16', 304_326_632, 304_715_752),
    ('L/32', 306_535_400, 306_632_680),
    ('H/14', 632_045_800, None),
])
def test_parameter_counts(variant, at_224, at_384):
  assert count(variant) == at_224
  if at_384:
    assert count(variant, image_size=384) == at_384


@pytest.mark.parametrize('variant, expected', [('B/16', 86_566_120), ('B/32', 88_222_696)])
def test_parameter_counts_without_class_token(variant, expected):
  assert count(variant, pool='gap') == expected


@pytest.mark.parametrize('variant, width, expected', [
    ('B/16', 768, 103_186_515),
    ('B/32', 768, 104_843_091),
    ('L/16', 1024, 326_740_307),
    ('L/32', 1024, 328_949_075),
    ('H/14', 1280, 660_385_363),
])
def test_parameter_counts_of_imagenet21k_files(variant, width, expected):
  assert count(variant, num_classes=21_843, representation_size=width) == expected


def test_fixed_and_absent_positions_have_no_parameters():
  learned = count('Ti/16', pool='gap')
  assert count('Ti/16', pool='gap', position='none') == learned - 196 * 192
  assert count('Ti/16', pool='gap', position='sincos2d') == learned - 196 * 192


def test_a_given_field_wins_over_the_variant():
  assert params_of(make(variant='B/16'))['patch_embed']['kernel'].shape == (4, 4, 3, 24)


# Golden outputs of the authors' code and of big_vision.


def from_official(arrays, grid):
  """Return our tree from official names: blocks stacked, the class token's position separate from the grid's."""
  arrays = {name.removeprefix('params/'): array for name, array in arrays.items()}
  names = {'LayerNorm_0': 'attention_norm', 'LayerNorm_1': 'mlp_norm', 'LayerNorm_2': 'mlp_norm',
           'MultiHeadDotProductAttention_0': 'attention', 'MultiHeadDotProductAttention_1': 'attention',
           'MlpBlock_0': 'mlp', 'MlpBlock_3': 'mlp', 'Dense_0': 'up', 'Dense_1': 'down',
           'embedding': 'patch_embed'}
  flat, blocks = {}, {}
  for name, array in arrays.items():
    if found := re.fullmatch(r'Transformer/encoderblock_(\d+)/(.*)', name):
      path = ('encoder', 'blocks', *(names.get(part, part) for part in found[2].split('/')))
      blocks.setdefault(path, {})[int(found[1])] = array
    elif name == 'cls':
      flat['token',] = array.reshape(-1)
    elif name.startswith('Transformer/encoder_norm/'):
      flat['norm', name.split('/')[-1]] = array
    elif name.endswith('pos_embedding'):
      table, n = array[0], array.shape[1] - grid[0] * grid[1]
      flat['position', 'grid'] = table[n:].reshape(*grid, -1)
      if n:
        flat['position', 'token'] = table[0]
    else:
      flat[tuple(names.get(part, part) for part in name.split('/'))] = array
  flat.update({path: np.stack([parts[i] for i in range(len(parts))]) for path, parts in blocks.items()})
  tree = {}
  for (*path, leaf), array in flat.items():
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = array
  return tree


@pytest.mark.parametrize('name, grid, fields', [
    ('vit_token', (4, 4), {}),
    ('vit_gap', (4, 4), dict(pool='gap')),
    ('vit_features', (4, 4), dict(num_classes=None)),
    ('vit_nonsquare_patch', (4, 8), dict(patch_size=(4, 2))),
    ('vit_token_prelogits_old', (4, 4), dict(representation_size=24)),
    ('bv_tok_learn', (4, 4), dict(token_position=False)),
    ('bv_gap_rep_sincos2d', (4, 4), dict(pool='gap', position='sincos2d', representation_size=24)),
    ('bv_nonsquare_sincos2d', (4, 6), dict(image_size=(16, 24), pool='gap', position='sincos2d')),
])
def test_output_equals_the_reference_implementation(name, grid, fields):
  with np.load(GOLDEN / f'{name}.npz') as weights, np.load(GOLDEN / f'{name}.io.npz') as io:
    model, params = make(**fields), from_official(dict(weights), grid)
    expected, ours = jax.tree.map(np.shape, params_of(model)), jax.tree.map(np.shape, params)
    assert ours == expected
    output = forward(with_params(model, params), io['images'])
    np.testing.assert_allclose(output, io['output'], atol=1e-5, rtol=1e-5)
    assert np.std(io['output']) > 0.01  # not a comparison of zeros


# One block, and the whole model, written plainly in float64.


def numpy_layer_norm(x, p):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p['scale'] + p['bias']


def numpy_softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def numpy_block(x, p):
  """Return the block's output for one example's tokens (N, width), one head at a time."""
  y, a = numpy_layer_norm(x, p['attention_norm']), p['attention']
  attended = np.zeros_like(x) + a['out']['bias']
  heads, head_dim = a['query']['bias'].shape
  for h in range(heads):
    q, k, v = (y @ a[n]['kernel'][:, h] + a[n]['bias'][h] for n in ('query', 'key', 'value'))
    attended += numpy_softmax(q @ k.T / np.sqrt(head_dim)) @ v @ a['out']['kernel'][h]
  x = x + attended
  hidden = numpy_layer_norm(x, p['mlp_norm']) @ p['mlp']['up']['kernel'] + p['mlp']['up']['bias']
  hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
  return x + hidden @ p['mlp']['down']['kernel'] + p['mlp']['down']['bias']


def float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_a_block_equals_plain_numpy():
  block = randomized(encoder.EncoderBlock(ViTConfig(**TINY), rngs=nnx.Rngs(0)))
  x = np.random.default_rng(3).normal(size=(2, 5, 24)).astype(np.float32)
  expected = [numpy_block(example.astype(np.float64), float64(params_of(block))) for example in x]
  np.testing.assert_allclose(forward(block, x), expected, atol=2e-5)


def test_the_model_equals_plain_numpy():
  model, images = randomized(make(representation_size=5)), pictures(2)
  p = float64(params_of(model))
  expected = []
  for image in images.astype(np.float64):
    patches = [image[r:r + 4, c:c + 4].reshape(-1) for r in range(0, 16, 4) for c in range(0, 16, 4)]
    x = np.stack(patches) @ p['patch_embed']['kernel'].reshape(48, 24) + p['patch_embed']['bias']
    x += p['position']['grid'].reshape(16, 24)
    x = np.concatenate([[p['token'] + p['position']['token']], x])
    for i in range(2):
      x = numpy_block(x, jax.tree.map(lambda a, i=i: a[i], p['encoder']['blocks']))
    x = numpy_layer_norm(x, p['norm'])[0]
    x = np.tanh(x @ p['pre_logits']['kernel'] + p['pre_logits']['bias'])
    expected.append(x @ p['head']['kernel'] + p['head']['bias'])
  np.testing.assert_allclose(forward(model, images), expected, atol=5e-5)


def test_without_positions_the_order_of_the_patches_does_not_matter():
  images = pictures(2)
  turned = np.concatenate([images[:, 8:], images[:, :8]], axis=1)  # rows of patches 2, 3, 0, 1
  for position, same in [('none', True), ('learned', False), ('sincos2d', False)]:
    model = randomized(make(position=position, pool='gap'))
    assert np.allclose(forward(model, images), forward(model, turned), atol=1e-5) == same, position


def test_sincos2d_equals_its_definition():
  embedding, token = embeddings.SinCos2D((2, 3), 8, class_token=True, rngs=nnx.Rngs(0))()
  for y in range(2):
    for x in range(3):
      expected = [f(at * 10_000.0 ** -k) for at in (x, y) for f in (np.sin, np.cos) for k in (0, 1)]
      np.testing.assert_allclose(embedding[y, x], expected, atol=1e-6)
  assert not np.any(token)


def test_unrolled_scan_gives_the_same():
  images, rngs = pictures(2), keys(2)
  outputs = [forward(randomized(make(depth=3, dropout=0.3, unroll=unroll)), images, rngs) for unroll in (False, True)]
  np.testing.assert_allclose(*outputs, atol=1e-5)


# Options of other code bases' encoders; their golden outputs are in tests/pretrained/test_formats.py.


def test_quick_gelu_equals_its_definition():
  x = np.linspace(-9, 9, 50).astype(np.float32)
  np.testing.assert_allclose(layers.gelu_quick(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x.astype(np.float64))), atol=1e-6)


def test_pixels_beyond_the_last_whole_patch_are_ignored():
  ragged, whole = make(image_size=(18, 23), patch_size=4), make(image_size=(16, 20))
  ragged = randomized(ragged)
  images = pictures(2, 18, 23)
  np.testing.assert_array_equal(
      forward(ragged, images), forward(with_params(whole, params_of(ragged)), images[:, :16, :20]))
  assert 'sees the 16×20 pixels' in ragged.config.unseen_pixels and whole.config.unseen_pixels is None


def test_tokens_with_pre_norm_distillation_token_and_positions_of_registers():
  model = randomized(make(pool='distilled', pre_norm=True, patch_bias=False, registers=2, register_position=True))
  images, p = pictures(2), float64(params_of(model))
  assert 'bias' not in p['patch_embed'] and p['prefix_position'].shape == (3, 24)
  patches = images.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 48)
  patches = patches @ p['patch_embed']['kernel'].reshape(48, 24) + p['position']['grid'].reshape(16, 24)
  prefix = np.concatenate([(p['token'] + p['position']['token'])[None], p['distillation_token'][None], p['registers']])
  prefix[1:] += p['prefix_position']
  tokens = np.concatenate([np.broadcast_to(prefix, (2, 4, 24)), patches], axis=1)
  np.testing.assert_allclose(model.tokens(images), numpy_layer_norm(tokens, p['pre_norm']), atol=1e-5)


def test_two_heads_give_the_mean_of_their_logits():
  model, images = randomized(make(pool='distilled')), pictures()
  class_token, distillation_token = np.asarray(model.features(images))[:, :2].swapaxes(0, 1)
  apply = lambda head, x: x @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
  logits = apply(model.head, class_token), apply(model.head_distilled, distillation_token)
  np.testing.assert_allclose(forward(model, images), (logits[0] + logits[1]) / 2, atol=1e-5)
  np.testing.assert_allclose(model.embed(images), (class_token + distillation_token) / 2, atol=1e-5)
  one_head = randomized(make(distillation_token=True))
  assert one_head.head_distilled is None and one_head.config.num_prefix_tokens == 2


# Initial values (facts of the authors' code).


@pytest.fixture(scope='module')
def initial():
  fields = dict(width=48, mlp_dim=96, depth=3, image_size=32, representation_size=40, head_bias=-10.0)
  return jax.tree.map(np.asarray, jax.jit(lambda: params_of(create(**fields)))())


def leaf(tree, name):
  for part in name.split('/'):
    tree = tree[part]
  return tree


@pytest.mark.parametrize('name, fan_in_plus_fan_out', [
    *[(f'attention/{n}/kernel', 48 + 48) for n in ('query', 'key', 'value', 'out')],
    ('mlp/up/kernel', 48 + 96), ('mlp/down/kernel', 48 + 96)])
def test_block_kernels_are_xavier_uniform(initial, name, fan_in_plus_fan_out):
  kernel, limit = leaf(initial['encoder']['blocks'], name), np.sqrt(6 / fan_in_plus_fan_out)
  for layer in kernel:
    assert 0.99 * limit < np.abs(layer).max() <= limit
    assert layer.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert abs(layer.mean()) < 0.05 * limit


@pytest.mark.parametrize('name, fan_in', [('patch_embed/kernel', 4 * 4 * 3), ('pre_logits/kernel', 48)])
def test_embedding_and_hidden_layer_are_lecun_normal(initial, name, fan_in):
  kernel = leaf(initial, name)
  std = 1 / np.sqrt(fan_in)
  assert kernel.std() == pytest.approx(std, rel=0.07)
  assert 1.8 * std < np.abs(kernel).max() <= 2 / 0.87962566 * std * 1.0001  # a normal, cut at 2 of its sigmas


@pytest.mark.parametrize('name', ['position/grid', 'position/token'])
def test_positions_have_standard_deviation_002(initial, name):
  assert leaf(initial, name).std() == pytest.approx(0.02, rel=0.05 if name.endswith('grid') else 0.4)


@pytest.mark.parametrize('name', ['up', 'down'])
def test_mlp_biases_are_tiny_but_not_zero(initial, name):
  bias = initial['encoder']['blocks']['mlp'][name]['bias']
  assert bias.std() == pytest.approx(1e-6, rel=0.25)


@pytest.mark.parametrize('name, value', [
    ('token', 0.0), ('head/kernel', 0.0), ('head/bias', -10.0), ('patch_embed/bias', 0.0), ('pre_logits/bias', 0.0),
    ('norm/scale', 1.0), ('norm/bias', 0.0),
    *[(f'encoder/blocks/{n}/scale', 1.0) for n in ('attention_norm', 'mlp_norm')],
    *[(f'encoder/blocks/{n}/bias', 0.0) for n in ('attention_norm', 'mlp_norm')],
    *[(f'encoder/blocks/attention/{n}/bias', 0.0) for n in ('query', 'key', 'value', 'out')]])
def test_constant_initial_values(initial, name, value):
  np.testing.assert_array_equal(leaf(initial, name), value)


def test_blocks_and_projections_have_different_initial_values(initial):
  blocks = initial['encoder']['blocks']
  for kernel in (blocks['attention']['query']['kernel'], blocks['mlp']['down']['kernel'], blocks['mlp']['up']['bias']):
    assert len(np.unique(kernel.reshape(3, -1), axis=0)) == 3
    assert np.isin(kernel[0], kernel[1]).mean() < 0.01
  q, k, v = (blocks['attention'][n]['kernel'] for n in ('query', 'key', 'value'))
  assert not np.allclose(q, k) and not np.allclose(k, v) and not np.allclose(q, v)


def test_parameters_follow_the_seed():
  init = jax.jit(lambda key: params_of(VisionTransformer(ViTConfig(**TINY), rngs=nnx.Rngs(key))))
  five, again, six = (init(jax.random.key(seed)) for seed in (5, 5, 6))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, five, again)))
  for name in ('patch_embed/kernel', 'position/grid', 'encoder/blocks/attention/query/kernel'):
    assert not np.allclose(leaf(five, name), leaf(six, name))


# bfloat16.


def test_bfloat16_computes_in_bfloat16_but_keeps_float32_parameters_and_logits():
  images = pictures()
  full = randomized(make())
  half = with_params(make(dtype='bfloat16'), params_of(full))
  assert {x.dtype for x in jax.tree.leaves(params_of(make(dtype='bfloat16')))} == {jnp.dtype('float32')}
  assert jax.eval_shape(half.tokens, images).dtype == jnp.bfloat16
  expected, output = forward(full, images), forward(half, images)
  assert output.dtype == jnp.float32
  error = np.abs(output - expected).max() / np.std(expected)
  assert 1e-5 < error < 0.05


def test_attention_scores_stay_float32_in_bfloat16():
  rng = np.random.default_rng(0)
  q, k = (rng.normal(size=(1, 2, 6, 8)).astype(np.float32) for _ in range(2))
  # Scores around 300, where bfloat16 has steps of 2: in bfloat16 the softmax would be far off.
  q, k = jnp.asarray(30 + q, jnp.bfloat16), jnp.asarray(3.5 + k / 8, jnp.bfloat16)
  q64, k64 = np.asarray(q * q.shape[-1] ** -0.5, np.float64), np.asarray(k, np.float64)
  weights = attention.attention_weights(q * q.shape[-1] ** -0.5, k)
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights, numpy_softmax(np.einsum('bhqd,bhkd->bhqk', q64, k64)), atol=1e-3)


# Dropout.


DROPS = dict(num_classes=None, dropout=0.4, attention_dropout=0.3)


def test_without_keys_dropout_is_off():
  images = pictures()
  model = randomized(make(**DROPS))
  plain = with_params(make(num_classes=None), params_of(model))
  np.testing.assert_array_equal(forward(model, images), forward(plain, images))
  assert not np.allclose(forward(model, images, keys()), forward(plain, images), atol=1e-2)


def test_masks_do_not_depend_on_the_place_in_the_batch():
  model, images, rngs = randomized(make(**DROPS)), pictures(), keys()
  output = np.asarray(forward(model, images, rngs))
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(forward(model, images[order], rngs[order]), output[order], atol=1e-5)
  np.testing.assert_allclose(forward(model, images[1:3], rngs[1:3]), output[1:3], atol=1e-5)


@pytest.mark.parametrize('rates', [dict(dropout=0.4), dict(attention_dropout=0.4)])
def test_other_keys_give_other_masks(rates):
  model = randomized(make(num_classes=None, **rates))
  same = np.repeat(pictures(1), 4, axis=0)
  output = np.asarray(forward(model, same, keys()))
  assert all(np.abs(output[i] - output[j]).max() > 1e-2 for i in range(4) for j in range(i))


def test_every_block_draws_its_own_masks():
  model = make(depth=2, dropout=0.5)
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), params_of(model))
  params['encoder']['blocks']['mlp']['down']['bias'] += 1.0  # a block adds its last mask, times 2
  output = with_params(model, params).encoder(jnp.zeros((1, 8, 24)), keys(1))
  assert set(np.unique(output)) == {0.0, 2.0, 4.0}  # without 2.0 the two masks would be the same


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_dropout_keeps_the_mean(rate, dtype):
  x = jnp.ones((2, 200, 150), dtype)
  y = np.asarray(layers.dropout(x, rate, keys(2)), np.float64)
  assert set(np.unique(y)) == {0.0, float(jnp.ones((), dtype) / (1 - rate))}
  sigma = np.sqrt(rate / (1 - rate) / y[0].size)
  for example in y:
    assert abs(example.mean() - 1.0) < 5 * sigma + (0.005 if dtype == 'bfloat16' else 0)


def test_dropout_on_attention_weights_rescales_those_that_stay():
  layer = randomized(nnx.eval_shape(
      lambda: attention.Attention(16, 1, dropout=0.25, dtype=jnp.float32, rngs=nnx.Rngs(0))))
  params = params_of(layer)
  for name, shape in (('value', (16, 1, 16)), ('out', (1, 16, 16))):  # the output is the weights
    params[name] = {'kernel': jnp.eye(16).reshape(shape), 'bias': jnp.zeros(shape[1:] if name == 'value' else 16)}
  layer, x = with_params(layer, params), jnp.tile(jnp.eye(16), (2, 1, 1))
  kept, dropped = np.asarray(layer(x)), np.asarray(layer(x, rngs=keys(2)))
  np.testing.assert_allclose(kept.sum(-1), 1.0, atol=1e-5)
  mask = dropped != 0
  np.testing.assert_allclose(dropped[mask], kept[mask] / 0.75, rtol=1e-5)
  assert abs(mask.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / mask.size)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_with_dropout_are_finite_and_reach_every_parameter(dtype):
  model, images = randomized(make(**DROPS, dtype=dtype, representation_size=6)), pictures()
  loss = lambda params: (with_params(model, params)(images, keys()) ** 2).sum()
  grads = jax.jit(jax.grad(loss))(params_of(model))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 0 or path[-2].key == 'key', path  # softmax cancels the key bias


# Errors.


@pytest.mark.parametrize('fields, message', [
    (dict(variant='X/16'), r"model.variant: unknown 'X/16'.*SIZE one of \['B', .*'L', 'S', .*'Ti'"),
    (dict(variant='B'), "model.variant: unknown 'B'.*'B/16'"),
    (dict(variant='B/0'), "model.variant: unknown 'B/0'"),
    (dict(variant='B/16x'), "model.variant: unknown 'B/16x'"),
    (dict(pool='max'), r"model.pool: unknown 'max'; choose from \['distilled', 'gap', 'map', 'token', 'token_gap'\]"),
    (dict(position='rotary'), r"model.position: unknown 'rotary'; choose from \['learned', .*'none', .*'sincos2d'"),
    (dict(patch_size=32), r'data.image_size: \(16, 16\) is smaller than a patch, \(32, 32\)'),
    (dict(pool='distilled', distillation_token=False), "model.distillation_token: model.pool='distilled' reads"),
    (dict(pool='gap', distillation_token=True), 'model.distillation_token: needs a class token'),
    (dict(pool='distilled', representation_size=8), "model.representation_size: model.pool='distilled' has no hidden"),
    (dict(distillation_token=True, registers=1, register_position=True, token_position=False),
     'model.register_position: needs model.token_position=True'),
    (dict(class_token=False), "model.class_token: model.pool='token' reads the class token"),
    (dict(heads=5), 'model.heads: must divide the width 24, got 5'),
    (dict(heads=0), 'model.heads: must be at least 1, got 0'),
    (dict(patch_size=0), 'model.patch_size: expected a positive number of pixels.*got 0'),
    (dict(patch_size=(4, 4, 4)), r'model.patch_size: .*got \(4, 4, 4\)'),
    (dict(width=None, mlp_dim=None), r"model: missing \['width', 'mlp_dim'\].*model.variant='B/16'"),
    (dict(position='sincos2d', width=18), "model.position: 'sincos2d' needs a width divisible by 4, got 18"),
])
def test_bad_fields_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    make(**fields)


@pytest.mark.parametrize('shape', [(2, 16, 12, 3), (2, 16, 16, 1), (16, 16, 3)])
def test_images_of_another_shape_are_refused(shape):
  jaxtyping.config.update('jaxtyping_disable', True)  # users do not run the checks of the tests
  try:
    with pytest.raises(UserError, match=r'images: expected shape \(B, 16, 16, 3\), got \(' + str(shape[0])):
      randomized(make())(np.zeros(shape, np.float32))
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)

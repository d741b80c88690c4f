"""Optimizers: all converge, and equal NumPy or unstacked optax; frozen parameters have no state."""
import math
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import orbax.checkpoint as ocp
import pytest

from vit_jax.base.durations import Duration, Pace
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten, path_of
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.vit_tree import ViTTree
from vit_jax.training import optim
from vit_jax.training.optim import OptimConfig
from vit_jax.training.optimizers import OPTIMIZERS
from vit_jax.training.state import TrainState

WIDTH, HEADS, MLP, DEPTH = 12, 2, 24, 3
BLOCK = {
    'attention': {'query': {'kernel': (WIDTH, HEADS, WIDTH // HEADS), 'bias': (HEADS, WIDTH // HEADS)},
                  'out': {'kernel': (HEADS, WIDTH // HEADS, WIDTH)}},
    'attention_norm': {'scale': (WIDTH,)},
    'mlp': {'up': {'kernel': (WIDTH, MLP)}, 'down': {'kernel': (MLP, WIDTH)}},
}
REST = {'patch_embed': {'kernel': (4, 4, 3, WIDTH)}, 'token': (WIDTH,), 'head': {'kernel': (WIDTH, 7), 'bias': (7,)}}
MODEL = ViTTree(ViTConfig(width=WIDTH, heads=HEADS, mlp_dim=MLP, depth=DEPTH, patch_size=4, image_size=8))
PACE = Pace(batch_size=1, examples=1)
is_shape = lambda x: isinstance(x, tuple)


def tree_like(shapes, rng, lead=()):
  return jax.tree.map(lambda s: rng.normal(size=(*lead, *s)).astype(np.float32), shapes, is_leaf=is_shape)


def vit_tree(seed, depth=DEPTH):
  """Return random values in the tree of a small ViT (some of its parameters), its blocks stacked."""
  rng = np.random.default_rng(seed)
  norm = tree_like({'scale': (WIDTH,)}, rng)
  return dict(tree_like(REST, rng), encoder={'blocks': tree_like(BLOCK, rng, (depth,)), 'norm': norm})


def block_of(tree, i):
  return jax.tree.map(lambda x: x[i], tree['encoder']['blocks'])


def build(name='adamw', total=10, params=None, model=MODEL, **fields):
  """Return an optimizer of `params`, by default those of `vit_tree`, with constant rate 0.1 and no clipping."""
  config = OptimConfig(**{**dict(name=name, peak_lr=0.1, schedule='constant', clip_norm=None), **fields})
  return optim.build(config, total, PACE, model, vit_tree(0) if params is None else params)


def transform(*args, **fields):
  return build(*args, **fields).transform


def steps_of(optimizer, params, gradients):
  """Return the parameters after each step."""
  update, state, history = jax.jit(optimizer.update), optimizer.init(params), []
  for grads in gradients:
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history


def assert_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, err_msg=path_of(path), **tolerance)


# All of them.

LEARNING_RATES = dict(adafactor=0.05, adam=0.1, adamw=0.1, lamb=0.05, lion=0.05, muon=0.1, sgd=0.1)


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_converges_on_a_quadratic(name):
  target = vit_tree(0)
  start = jax.tree.map(lambda x: 0.1 * x, vit_tree(1))
  optimizer = transform(name, 300, peak_lr=LEARNING_RATES[name], schedule='cosine', warmup=Duration(10),
                        clip_norm=100.0)
  loss = lambda params: sum(jax.tree.leaves(jax.tree.map(lambda p, t: ((p - t) ** 2).sum() / 2, params, target)))

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  _, values = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=300))(start)
  assert np.isfinite(values).all()
  assert values[-1] < 0.01 * values[0]


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_the_first_update_is_scaled_by_the_schedule(name):
  params, grads = vit_tree(0), vit_tree(1)
  optimizer = build(name, warmup=Duration(4))
  update = jax.jit(optimizer.transform.update)
  first, state = update(grads, optimizer.transform.init(params), params)
  assert all(np.all(x == 0) for x in jax.tree.leaves(first))  # the warm-up rises from 0
  assert float(optimizer.schedule(1)) == pytest.approx(0.1 / 4)
  second, _ = update(grads, state, params)
  descends = sum(float((u * g).sum()) for u, g in zip(jax.tree.leaves(second), jax.tree.leaves(grads), strict=True))
  assert descends < 0


# Adam and SGD against NumPy.


def numpy_adam(params, gradients, rates, *, b1=0.9, b2=0.999, eps=1e-8, decoupled=0.0, penalty=0.0):
  p = params.astype(np.float64)
  m = v = np.zeros_like(p)
  for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
    g = g.astype(np.float64) + penalty * p
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    adam = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    p = p - rate * (adam + decoupled * p)
  return p


def warm_cosine(t, peak, warmup, total):
  """Return the learning rate at step t."""
  return peak * min(1, t / warmup) * 0.5 * (1 + np.cos(np.pi * max(t - warmup, 0) / (total - warmup)))


def vector_run(seed=0, steps=8):
  rng = np.random.default_rng(seed)
  return rng.normal(size=5).astype(np.float32), rng.normal(size=(steps, 5)).astype(np.float32)


@pytest.mark.parametrize('options', [{}, dict(b1=0.8, b2=0.95, eps=1e-3)])
def test_adamw_equals_numpy_with_decay_times_the_scheduled_rate(options):
  start, gradients = vector_run()
  optimizer = transform(total=8, params={'w': start}, peak_lr=0.2, schedule='cosine', warmup=Duration(3),
                        weight_decay=0.3, options=options)
  rates = [warm_cosine(t, 0.2, 3, 8) for t in range(8)]
  expected = numpy_adam(start, gradients, rates, decoupled=0.3, **options)
  ours = steps_of(optimizer, {'w': start}, [{'w': g} for g in gradients])[-1]['w']
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(numpy_adam(start, gradients, rates, **options) - expected).max() > 0.05  # the decay is seen


def test_adam_adds_its_decay_to_the_gradient():
  start, gradients = vector_run()
  optimizer = transform('adam', params={'w': start}, weight_decay=0.3)
  expected = numpy_adam(start, gradients, [0.1] * 8, penalty=0.3)
  ours = steps_of(optimizer, {'w': start}, [{'w': g} for g in gradients])[-1]['w']
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_adamw_keeps_its_first_moment_in_bfloat16_on_request():
  start, gradients = vector_run()
  optimizer = transform(params={'w': start}, options=dict(mu_dtype='bfloat16'))
  state = optimizer.init({'w': start})
  adam = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu'))
  assert (adam.mu['w'].dtype, adam.nu['w'].dtype) == (jnp.bfloat16, jnp.float32)
  ours = steps_of(optimizer, {'w': start}, [{'w': g} for g in gradients])[-1]['w']
  np.testing.assert_allclose(ours, numpy_adam(start, gradients, [0.1] * 8), atol=0.01)


def bfloat16(x):
  return np.asarray(x, jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_sgd_with_momentum_equals_numpy(dtype, nesterov):
  start, gradients = vector_run()
  optimizer = transform('sgd', params={'w': start}, weight_decay=0.05,
                        options=dict(accumulator_dtype=dtype, nesterov=nesterov))
  kept = bfloat16 if dtype == 'bfloat16' else (lambda x: x)
  p, m = start.copy(), np.zeros(5, np.float32)
  for g in gradients:
    total = 0.9 * m + g  # the update takes the sum before it is stored
    m = kept(total)
    p = p - 0.1 * ((0.9 * total + g if nesterov else total) + 0.05 * p)
  ours = steps_of(optimizer, {'w': start}, [{'w': g} for g in gradients])[-1]['w']
  # 0.9 itself is rounded to bfloat16 beside a bfloat16 moment: 0.2 %.
  np.testing.assert_allclose(ours, p, atol=1e-5 if dtype == 'float32' else 0.03)


def test_sgd_keeps_bfloat16_by_default_but_does_not_round_the_update():
  start, gradients = vector_run()
  optimizer = transform('sgd', params={'w': start}, peak_lr=1.0)
  state = optimizer.init({'w': start})
  assert jnp.dtype('bfloat16') in {x.dtype for x in jax.tree.leaves(state)}
  updates, _ = optimizer.update({'w': gradients[0]}, state, {'w': start})
  np.testing.assert_array_equal(updates['w'], -gradients[0])
  assert not np.array_equal(bfloat16(gradients[0]), gradients[0])


def test_lion_moves_by_the_sign_of_the_interpolated_moment():
  start, gradients = vector_run()
  optimizer = transform('lion', params={'w': start}, weight_decay=0.5)
  p, m = start.copy(), np.zeros(5)
  for g in gradients:
    p = p - 0.1 * (np.sign(0.9 * m + 0.1 * g) + 0.5 * p)
    m = 0.99 * m + 0.01 * g
  ours = steps_of(optimizer, {'w': start}, [{'w': g} for g in gradients])[-1]['w']
  np.testing.assert_allclose(ours, p, atol=1e-5)


@pytest.mark.parametrize('clip_norm, factor', [(None, 1.0), (1.0, 1 / 13), (6.5, 0.5), (20.0, 1.0)])
def test_clipping_scales_the_whole_gradient_to_the_norm(clip_norm, factor):
  grads = {'a': np.array([3.0, 4.0], np.float32), 'b': {'c': np.array([[12.0]], np.float32)}}  # norm 13
  params = jax.tree.map(np.ones_like, grads)
  optimizer = transform('sgd', params=params, peak_lr=1.0, clip_norm=clip_norm, weight_decay=0.5)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  assert_close(updates, jax.tree.map(lambda g: -factor * g - 0.5, grads), rtol=1e-6)  # the decay is not clipped


# Which parameters decay.


@pytest.mark.parametrize('mask, decays', [
    ('.*', lambda name: True),
    ('.*/kernel', lambda name: name.endswith('kernel')),
    ('head/.*', lambda name: name.startswith('head/')),
    ('token', lambda name: name == 'token'),  # the whole path has to match
])
def test_decay_mask_selects_by_path(mask, decays):
  params = vit_tree(0)
  zeros = jax.tree.map(np.zeros_like, params)
  optimizer = transform('sgd', weight_decay=0.3, decay_mask=mask)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  names = []
  for (path, update), param in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True):
    names.append('/'.join(key.key for key in path))
    expected = -0.1 * 0.3 * param if decays(names[-1]) else np.zeros_like(param)
    np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=names[-1])
  assert 'encoder/blocks/mlp/up/kernel' in names


# Stacked blocks are as many blocks by themselves.

FACTOR = dict(min_dim_size_to_factor=6)


def muon_axes(params):
  """Return the matrix axes of each kernel of one block, not stacked."""
  axes = dict(query=(0, (1, 2)), out=((0, 1), 2), up=(0, 1), down=(0, 1))
  return jax.tree_util.tree_map_with_path(
      lambda path, _: contrib.MuonDimensionNumbers(*axes[path[-2].key]) if path[-1].key == 'kernel' else None, params)


PLAIN = {
    'adafactor': lambda: optax.adafactor(0.1, 6, multiply_by_parameter_scale=True),
    'lamb': lambda: optax.lamb(0.1, weight_decay=0.2),
    'muon': lambda: contrib.muon(0.1, weight_decay=0.2, adam_weight_decay=0.2, muon_weight_dimension_numbers=muon_axes),
}
OURS = {'adafactor': dict(options=FACTOR), 'lamb': dict(weight_decay=0.2), 'muon': dict(weight_decay=0.2)}


@pytest.mark.parametrize('name', sorted(PLAIN))
def test_a_stack_is_optimized_like_its_layers_one_by_one(name):
  params, gradients = vit_tree(0), [vit_tree(seed) for seed in (1, 2, 3)]
  # Layers of very different size, so that a norm over the whole stack would be another.
  scale = np.array([1.0, 10.0, 0.1], np.float32)
  params['encoder']['blocks'] = jax.tree.map(
      lambda x: x * scale.reshape(3, *[1] * (x.ndim - 1)), params['encoder']['blocks'])
  ours = steps_of(transform(name, **OURS[name]), params, gradients)[-1]
  for i in range(DEPTH):
    plain = steps_of(PLAIN[name](), block_of(params, i), [block_of(g, i) for g in gradients])[-1]
    assert_close(block_of(ours, i), plain, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('name', ['adafactor', 'lamb'])
def test_parameters_that_are_not_stacked_are_optimized_like_plain_optax(name):
  params, gradients = vit_tree(0), [vit_tree(seed) for seed in (1, 2, 3)]
  rest = lambda tree: {key: value for key, value in tree.items() if key != 'encoder'}
  ours = steps_of(transform(name, **OURS[name]), params, gradients)[-1]
  plain = steps_of(PLAIN[name](), rest(params), [rest(g) for g in gradients])[-1]
  assert_close(rest(ours), plain, rtol=2e-4, atol=2e-5)


def test_muon_orthogonalizes_each_matrix_of_a_stack_and_uses_adam_for_the_rest():
  params, grads = vit_tree(0), vit_tree(1)
  optimizer = transform('muon', peak_lr=1.0)
  updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  for name, rows in [('query', WIDTH), ('out', WIDTH)]:
    for layer in updates['encoder']['blocks']['attention'][name]['kernel']:
      values = np.linalg.svd(np.asarray(layer).reshape(rows, -1), compute_uv=False)
      assert np.mean(values > 0.6) > 0.8 and values.max() < 1.5
  # Adam's first step follows the gradient's signs, all of one size.
  rest = np.asarray(updates['patch_embed']['kernel']) * -np.sign(grads['patch_embed']['kernel'])
  np.testing.assert_allclose(rest, rest.mean(), rtol=1e-3)
  assert rest.mean() > 0.5


def test_adafactor_keeps_factored_moments_of_each_layer():
  params = vit_tree(0)
  optimizer = transform('adafactor', options=FACTOR)
  up = [x.shape for path, x in jax.tree_util.tree_leaves_with_path(optimizer.init(params))
        if path_of(path).endswith('mlp/up/kernel')]
  assert {(DEPTH, WIDTH), (DEPTH, MLP)} <= set(up)
  assert (DEPTH, WIDTH, MLP) not in up


# Layer-wise learning rates.


def test_layer_decay_scales_the_rate_of_each_layer():
  params = dict(vit_tree(0), pool={'probe': np.ones(WIDTH, np.float32)}, norm={'scale': np.ones(WIDTH, np.float32)},
                objective={'decoder': np.ones(3, np.float32)})
  grads = jax.tree.map(np.ones_like, params)
  optimizer = transform('sgd', params=params, peak_lr=1.0, layer_decay=0.5)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  for path, update in flatten(updates).items():
    if path.startswith('encoder/blocks/'):
      for i in range(DEPTH):  # block i is layer i + 1, below DEPTH - i layers
        np.testing.assert_array_equal(update[i], -0.5 ** (DEPTH - i), err_msg=path)
    else:
      above = 0 if path.split('/')[0] in ('head', 'norm', 'pool', 'objective') else DEPTH + 1
      np.testing.assert_array_equal(update, -0.5 ** above, err_msg=path)


# Frozen parameters.

PROBE = '(?!head/).*'
HALF = '.*/(query|out|up)/.*|token'  # some leaves of every subtree


def numbers(state):
  return sum(x.size for x in jax.tree.leaves(state))


def test_a_linear_probe_of_ti16_keeps_moments_of_its_head_only():
  model = nnx.eval_shape(lambda: VisionTransformer(ViTConfig(variant='Ti/16', num_classes=10), rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  init = lambda freeze: jax.eval_shape(build(params=params, model=model, freeze=freeze).transform.init, params)
  trained = 192 * 10 + 10
  assert numbers(init(PROBE)) == 2 * trained + 2 == 3_862  # two counts: Adam's, and the schedule's
  assert numbers(init(None)) == 11_052_694


@pytest.mark.parametrize('name, freeze', [
    *[(name, HALF) for name in sorted(OPTIMIZERS)], ('adamw', PROBE),
    *[(name, 'encoder/blocks/.*') for name in ('adafactor', 'lamb', 'muon')]])
def test_frozen_parameters_stay_and_the_others_move_as_without_freezing(name, freeze):
  """Weight decay and layer-wise rates included; without clipping no parameter's update depends on another's."""
  fields = dict(weight_decay=0.3, layer_decay=0.5, peak_lr=0.05)
  start, gradients = vit_tree(0), [vit_tree(seed) for seed in (1, 2)]
  optimizer = build(name, freeze=freeze, **fields)
  stopped = [jax.tree.map(lambda g, stop: g * (not stop), g, optimizer.frozen) for g in gradients]
  ours = flatten(steps_of(optimizer.transform, start, stopped)[-1])
  free = flatten(steps_of(transform(name, **fields), start, gradients)[-1])
  kept_paths = list(flatten(optimizer.transform.init(start)))
  for path, before in flatten(start).items():
    if not re.fullmatch(freeze, path):
      np.testing.assert_allclose(ours[path], free[path], atol=1e-6, err_msg=path)
      continue
    np.testing.assert_array_equal(ours[path], before, err_msg=path)
    assert not np.array_equal(free[path], before)
    assert not any(kept.endswith(f'/{path}') for kept in kept_paths)


def test_the_ema_holds_every_parameter():
  params = vit_tree(0)
  state = TrainState.create(params, transform(freeze=PROBE), ema=True)
  assert_close(state.ema, params)


def test_clipping_uses_the_norm_over_trained_parameters():
  params, grads = vit_tree(0), vit_tree(1)
  optimizer = transform('sgd', peak_lr=1.0, clip_norm=1.0, freeze=PROBE)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)  # those of frozen parameters too
  norm = np.sqrt(sum((g ** 2).sum() for g in grads['head'].values()))
  assert norm > 1
  assert_close(updates['head'], jax.tree.map(lambda g: -g / norm, grads['head']), rtol=1e-5)


@pytest.mark.parametrize('freeze', [PROBE, HALF])
@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_state_saved_for_all_parameters_is_restored_without_that_of_the_frozen_ones(name, freeze, tmp_path):
  """As version 0.1 saved it."""
  params, grads = vit_tree(0), vit_tree(1)
  old, new = transform(name), transform(name, freeze=freeze)
  _, saved = old.update(grads, old.init(params), params)
  like = jax.eval_shape(new.init, params)
  with ocp.PyTreeCheckpointer() as checkpointer:
    for part, state in (('old', saved), ('new', new.init(params))):
      checkpointer.save(tmp_path / part, state)
      args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
      restored = checkpointer.restore(tmp_path / part, ocp.args.PyTreeRestore(like, args, partial_restore=True))
      assert jax.tree.structure(restored) == jax.tree.structure(like)
      expected = flatten(state)
      for path, leaf in flatten(restored).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
      new.update(grads, restored, params)


# Errors.


@pytest.mark.parametrize('fields, message', [
    (dict(name='adagrad'), "optim.name: unknown 'adagrad'; choose from ['adafactor', 'adam', 'adamw'"),
    (dict(schedule='step'), "optim.schedule: unknown 'step'; choose from ["),
    (dict(options=dict(beta=0.9)),
     "optim.options: adamw has no ['beta']; valid options are ['b1', 'b2', 'eps', 'mu_dtype']"),
    (dict(options=dict(decay=0.9)), "adamw has no ['decay']"),
    (dict(warmup=Duration(11)), 'optim.warmup: the warm-up (11 steps)'),
    (dict(decay_mask='*/kernel'), "optim.decay_mask: '*/kernel' is not a regular expression"),
    (dict(freeze='*'), "optim.freeze: '*' is not a regular expression"),
    (dict(freeze='.*'), "optim.freeze: '.*' freezes every parameter"),
    (dict(freeze='tail/.*'), "optim.freeze: 'tail/.*' matches no parameter; choose from ['encoder/blocks/"),
    (dict(peak_lr=float('inf')), 'optim.peak_lr: must be at least 0, got inf'),
    (dict(layer_decay=0.0), 'optim.layer_decay: must be positive, got 0.0'),
    (dict(clip_norm=-1.0), 'optim.clip_norm: must be positive, got -1.0'),
])
def test_bad_arguments_are_named(fields, message):
  with pytest.raises(UserError, match=re.escape(message)):
    build(**fields)


@pytest.mark.parametrize('mask', ['kernel', 'head', 'head/kern'])  # parts of a path do not match
def test_a_mask_without_a_match_lists_the_paths(mask):
  with pytest.raises(UserError, match=f"optim.decay_mask: '{mask}' matches no parameter; .*'head/kernel'"):
    build(weight_decay=0.1, decay_mask=mask)


def test_the_weight_decay_changes_by_a_cosine():
  """Without gradients a step moves a parameter by -lr · w(step) · p."""
  config = OptimConfig(name='sgd', peak_lr=0.5, schedule='constant', weight_decay=0.04, end_weight_decay=0.4,
                       clip_norm=None)
  params = dict(head=dict(kernel=jnp.ones(())))
  transform = optim.build(config, 10, Pace(1, 10), MODEL, params).transform
  state = transform.init(params)
  for step in range(4):
    updates, state = transform.update(jax.tree.map(jnp.zeros_like, params), state, params)
    expected = 0.4 - 0.36 * (1 + math.cos(math.pi * step / 10)) / 2
    assert float(updates['head']['kernel']) == pytest.approx(-0.5 * expected, rel=1e-5)
  with pytest.raises(UserError, match='optim.end_weight_decay: must be at least 0'):
    OptimConfig(end_weight_decay=-1.0)

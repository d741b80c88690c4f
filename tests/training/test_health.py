"""The health panel: closed forms on constructed models, the step's own gradients and updates, many devices."""
import functools
import json
import os
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.health_on_devices import STRATEGIES, batch, program
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten
from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.bit.model import BiT
from vit_jax.models.config import ViTConfig
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.mixer import Mixer
from vit_jax.models.vit import VisionTransformer
from vit_jax.statistics.attention import distances
from vit_jax.training import health
from vit_jax.training.state import OBJECTIVE

IMAGES = np.random.default_rng(0).normal(size=(6, 12, 8, 3)).astype(np.float32)
BLOCKS = ('block_01', 'block_02', 'block_03')


def vit(**fields):
  """Return a ViT whose blocks do nothing: uniform attention, and branches that add zero."""
  net = VisionTransformer(ViTConfig(image_size=(12, 8), patch_size=4, width=12, depth=3, heads=2, mlp_dim=20,
                                    num_classes=4, **fields), rngs=nnx.Rngs(0))
  zero = ('query/kernel', 'query/bias', 'out/kernel', 'out/bias', 'down/kernel', 'down/bias', 'up/kernel', 'up/bias')
  state = nnx.state(net, nnx.Param)
  nnx.update(net, jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if any(f'{name}/value' in _path(path) or _path(path).endswith(name)
                                               for name in zero) else x, state))
  return net


def _path(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


@functools.partial(jax.jit, static_argnums=0)
def _measured(graphdef, params, images):
  net = nnx.merge(graphdef, params)
  return health.summarize(health.of_examples(net, images), net)


def measured(net, images=IMAGES):
  return {name: float(x) for name, x in _measured(*nnx.split(net), images).items()}


@pytest.mark.parametrize('fields, prefix', [({}, 1), (dict(pool='gap', registers=2), 2)])
def test_uniform_attention_has_the_entropy_of_all_tokens_and_the_mean_distance(fields, prefix):
  values = measured(vit(**fields))
  number = prefix + 6
  expected = distances((3, 2), (4, 4)).sum() / (6 * number)
  for layer in (*BLOCKS, 'all'):
    assert values[f'entropy/{layer}'] == pytest.approx(np.log(number), rel=1e-5)
    assert values[f'distance/{layer}'] == pytest.approx(expected, rel=1e-5)


def test_attention_to_one_token_has_no_entropy():
  """In block 2 all scores are the product of the tokens' first features, times 1e8."""
  net = vit()
  for kernel in (net.encoder.blocks.attention.query.kernel, net.encoder.blocks.attention.key.kernel):
    kernel[...] = jnp.zeros_like(kernel[...]).at[1, 0].set(1e4)
  values = measured(net)
  assert values['entropy/block_02'] == pytest.approx(0, abs=1e-5)
  assert values['entropy/block_01'] == pytest.approx(np.log(7), rel=1e-5)
  assert values['entropy/all'] == pytest.approx(2 / 3 * np.log(7), rel=1e-5)


def test_norms_of_tokens_that_no_block_changes():
  values, tokens = measured(net := vit()), np.asarray(vit().tokens(IMAGES))
  norms = np.sqrt((tokens**2).sum(axis=-1))
  for layer in ('stem', *BLOCKS, 'all'):
    assert values[f'token_norm/{layer}'] == pytest.approx(norms.mean(), rel=1e-5)
    assert values[f'token_norm_max/{layer}'] == pytest.approx(norms.max(), rel=1e-5)
  net.encoder.blocks.mlp.down.bias[...] = jnp.asarray(np.eye(3, dtype=np.float32)[1][:, None] * np.full(12, 7.0))
  changed = np.sqrt(((tokens + 7.0)**2).sum(axis=-1))  # by block 2
  values = measured(net)
  assert values['token_norm/block_01'] == pytest.approx(norms.mean(), rel=1e-5)
  assert values['token_norm/block_03'] == pytest.approx(changed.mean(), rel=1e-5)
  assert values['token_norm_max/all'] == pytest.approx(changed.max(), rel=1e-5)


@pytest.mark.parametrize('fields, where', [({}, 'up'), (dict(mlp='swiglu', gelu='exact'), 'gate')])
def test_units_that_are_very_negative_at_all_tokens_are_dead(fields, where):
  net = vit(**fields)
  getattr(net.encoder.blocks.mlp, where).kernel[...] *= 0
  bias = np.zeros((3, 20), np.float32)
  bias[1, :5], bias[2, :12], bias[2, 12:] = -30.0, -30.0, 30.0
  getattr(net.encoder.blocks.mlp, where).bias[...] = jnp.asarray(bias)
  values = measured(net)
  assert [values[f'dead_units/{layer}'] for layer in (*BLOCKS, 'all')] == pytest.approx([0, 0.25, 0.6, 0.85 / 3])


def test_a_unit_that_one_image_opens_is_not_dead():
  net = vit()
  net.encoder.blocks.mlp.up.bias[...] = jnp.full((3, 20), -30.0)
  net.encoder.blocks.mlp.up.kernel[...] = jnp.zeros((3, 12, 20)).at[:, 0, 0].set(1e3)
  assert measured(net)['dead_units/block_01'] == pytest.approx(0.95)


def test_slopes_of_a_block_are_those_at_its_hidden_units():
  net = VisionTransformer(ViTConfig(image_size=(12, 8), patch_size=4, width=12, depth=2, heads=2, mlp_dim=20,
                                    num_classes=4, layer_scale=0.3, relative_position='table',
                                    relative_position_shared=True), rngs=nnx.Rngs(0))
  _, found = net.collect(IMAGES, lambda block, x, **shared: block.slopes(x, **shared)[0])

  def hidden(block, x, **shared):  # without its MLP, a block returns what the MLP takes
    after = nnx.clone(block)
    after.mlp.down.kernel[...] *= 0
    after.mlp.down.bias[...] *= 0
    return block.mlp.up(block.mlp_norm(after(x, **shared)))

  _, values = net.collect(IMAGES, hidden)
  expected = jax.vmap(jax.grad(jax.nn.gelu))(values.reshape(-1)).reshape(values.shape)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_logits():
  net = vit()
  net.head.kernel[...] *= 0
  net.head.bias[...] = jnp.asarray([3.0, -4.0, 0.0, 0.0])
  values = measured(net)
  assert values['logits/rms'] == pytest.approx(2.5) and values['logits/max'] == pytest.approx(4)


TOKENS = {'token_norm', 'token_norm_max'}
ATTENTION = {'entropy', 'distance'}
VIT = dict(image_size=32, patch_size=8, width=16, depth=2, heads=2, mlp_dim=24, num_classes=5)


@pytest.mark.parametrize('config, statistics', [
    (BiTConfig(blocks=(1, 2), stem_width=8, groups=2, image_size=32, num_classes=5), TOKENS | {'logits'}),
    (MixerConfig(image_size=32, patch_size=8, width=16, depth=2, token_mlp_dim=10, channel_mlp_dim=24, num_classes=5),
     TOKENS | {'logits', 'dead_units'}),
    (ViTConfig(**dict(VIT, attention_kind='axial', pool='gap')), TOKENS | {'logits', 'dead_units'}),
    (ViTConfig(**dict(VIT, attention_kind='local', attention_window=1, unroll=True, remat='full')),
     TOKENS | {'logits', 'dead_units'} | ATTENTION),
    (ViTConfig(**dict(VIT, resnet=(1, 2), resnet_width=32, patch_size=1)), TOKENS | {'logits', 'dead_units'} | ATTENTION),
    (ViTConfig(**dict(VIT, num_classes=None)), TOKENS | {'dead_units'} | ATTENTION)])
def test_other_models_have_what_applies(config, statistics):
  make = {BiTConfig: BiT, MixerConfig: Mixer, ViTConfig: VisionTransformer}[type(config)]
  graphdef, params = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
  found = {}
  for name in jax.eval_shape(functools.partial(_measured, graphdef), params, jnp.zeros((2, 32, 32, 3))):
    found.setdefault(name.split('/')[0], set()).add(name.split('/')[1])
  assert set(found) == statistics
  assert found['token_norm'] == found['token_norm_max'] == {'stem', 'block_01', 'block_02', 'all'}
  assert all(found[name] == {'block_01', 'block_02', 'all'} for name in statistics - TOKENS - {'logits'})


def test_dead_units_of_a_mixer_are_those_of_both_mlps():
  net = Mixer(MixerConfig(image_size=8, patch_size=4, width=16, depth=1, token_mlp_dim=10, channel_mlp_dim=30,
                          num_classes=5), rngs=nnx.Rngs(0))
  net.encoder.blocks.token_mixing.up.bias[...] = jnp.full((1, 10), -100.0)
  assert measured(net, IMAGES[:, :8])['dead_units/block_01'] == pytest.approx(0.25)


@pytest.fixture(scope='module')
def step():
  """(state before a step, state after it, its metrics, its panel), on one device."""
  made = program('one', **{'optim.layer_decay': 0.5, 'optim.clip_norm': 0.1, 'optim.freeze': 'patch_embed/.*',
                           'model.unroll': True, 'mix.mixup': 0.2})
  state, data = made.strategy.create(made.create), made.strategy.put(batch())
  step = made.strategy.compile(made.step, donate=False)
  state, _ = step(state, data)  # the head starts at zero, and with it all other gradients
  panel = health.make_panel(made.model, made.merge, made.gradients, made.optimizer.transform,
                            made.config.normalization, made.strategy)
  values = made.strategy.compile(panel, donate=False)(state, data)
  after, metrics = step(state, data)
  return state, after, metrics, {name: float(x) for name, x in values.items()}


def test_gradients_are_those_of_the_step(step):
  *_, metrics, values = step
  assert values['grad_norm/all'] == pytest.approx(float(metrics['grad_norm'][0]), rel=1e-6)
  layers = [value for name, value in values.items() if name.startswith('grad_norm/') and name != 'grad_norm/all']
  assert len(layers) == 4 and np.linalg.norm(layers) == pytest.approx(values['grad_norm/all'], rel=1e-5)


def test_updates_are_those_of_the_step(step):
  """Slowly, parameter by parameter, with the difference of the parameters before and after."""
  state, after, _, values = step
  before, after = ({path: np.float64(x) for path, x in flatten(tree.params).items()} for tree in (state, after))
  squares = {}
  for path, x in before.items():
    for layer in (range(2) if 'blocks' in path else [None]):
      name = f'block_{layer + 1:02d}' if layer is not None else 'head' if path.split('/')[0] in ('head', 'norm') else 'stem'
      own, new = (x, after[path]) if layer is None else (x[layer], after[path][layer])
      for group in (name, 'all'):
        update, weight = squares.get(group, (0.0, 0.0))
        squares[group] = update + np.square(new - own).sum(), weight + np.square(own).sum()
  expected = {f'update_ratio/{name}': np.sqrt(update / weight) for name, (update, weight) in squares.items()}
  found = {name: value for name, value in values.items() if name.startswith('update_ratio/')}
  assert found == pytest.approx(expected, rel=1e-3) and min(found.values()) > 0


def test_parameters_of_an_objective_are_a_group():
  net = vit()
  params = dict(nnx.to_pure_dict(nnx.state(net, nnx.Param)), **{OBJECTIVE: {'decoder': {'kernel': jnp.full((2, 2), 3.0)}}})
  found = health.squares_by_layer(params, net)
  assert set(found) == {'stem', *BLOCKS, 'head', OBJECTIVE, 'all'}
  assert found[OBJECTIVE] == pytest.approx(36)
  assert found['all'] == pytest.approx(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(params)), rel=1e-6)


def test_images_are_the_same_on_any_number_of_devices():
  images = np.arange(128)
  for shards in (1, 2, 8, 32):
    on_mesh = health._sample(images, shards, shards)
    by_pmap = np.concatenate([health._sample(part, shards, 1) for part in images.reshape(shards, -1)])
    np.testing.assert_array_equal(on_mesh, images[::4])
    np.testing.assert_array_equal(by_pmap, images[::4])
  np.testing.assert_array_equal(health._sample(images, 64, 64), images[::2])  # one of each shard
  np.testing.assert_array_equal(health._sample(images[:24], 2, 2), images[:24])
  assert len(health._sample(images[:40], 1, 1)) == 32


@pytest.mark.slow
def test_many_devices_measure_like_one():
  """Eight devices: pmap, and meshes that shard the state by features and by heads; with micro-batches."""
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.health_on_devices'], cwd=tiny.ROOT, env=env, text=True,
                           capture_output=True, check=True)
  found = json.loads(process.stdout)
  assert set(found) == set(STRATEGIES)
  for name, values in found.items():
    assert values == pytest.approx(found['one'], rel=2e-4, abs=1e-6), name
    assert len(values) == 2 * 5 + 3 * 3 + 2 * 4 + 2


def test_a_bad_interval_is_an_error():
  assert health.HealthConfig().every is None
  with pytest.raises(UserError, match='health.every: expected a number of evaluations, or 0 for no panel; got -1'):
    health.HealthConfig(-1)

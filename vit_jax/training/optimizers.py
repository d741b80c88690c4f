"""The table of optimizers: one row each, over optax, that works on parameters stacked by layer."""
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from vit_jax.models.base import ParamTree, path_of


def adamw(decay: optax.GradientTransformation, _: ParamTree, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
          mu_dtype: str | None = None) -> optax.GradientTransformation:
  """Adam with decoupled weight decay (arXiv 1711.05101); `mu_dtype='bfloat16'` halves the first moment."""
  return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), decay)


def adam(decay: optax.GradientTransformation, _: ParamTree, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
         mu_dtype: str | None = None) -> optax.GradientTransformation:
  """Adam (arXiv 1412.6980); its weight decay is the classic L2 penalty, part of the gradient."""
  return optax.chain(decay, optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype))


def sgd(decay: optax.GradientTransformation, _: ParamTree, *, momentum: float = 0.9, nesterov: bool = False,
        accumulator_dtype: str | None = 'bfloat16') -> optax.GradientTransformation:
  """SGD with momentum, kept in bfloat16 as in the authors' fine-tuning code; the decay is decoupled."""
  return optax.chain(optax.trace(momentum, nesterov, accumulator_dtype=accumulator_dtype), decay)


def lion(decay: optax.GradientTransformation, _: ParamTree, *, b1: float = 0.9, b2: float = 0.99,
         mu_dtype: str | None = None) -> optax.GradientTransformation:
  """Lion (arXiv 2302.06675)."""
  return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype), decay)


def adafactor(decay: optax.GradientTransformation, model: ParamTree, *, decay_rate: float = 0.8,
              momentum: float | None = None, min_dim_size_to_factor: int = 32) -> optax.GradientTransformation:
  """Adafactor (arXiv 1804.04235): factored second moments, update scaled by the parameter's size.

  Attention kernels, (width, heads, head_dim), factor only if head_dim, 64, is at least `min_dim_size_to_factor`.
  """
  direction = optax.adafactor(None, min_dim_size_to_factor, decay_rate, momentum=momentum)
  return optax.chain(layerwise(direction, model.stacked), optax.scale(-1.0), decay)  # optax.adafactor already descends


def lamb(decay: optax.GradientTransformation, model: ParamTree, *, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-6) -> optax.GradientTransformation:
  """LAMB (arXiv 1904.00962): Adam whose update is scaled to each parameter's norm, layer by layer."""
  return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, layerwise(optax.scale_by_trust_ratio(), model.stacked))


def muon(decay: optax.GradientTransformation, model: ParamTree, *, beta: float = 0.95, ns_steps: int = 5,
         nesterov: bool = True) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024) on the model's hidden matrices, Adam (NAdam with `nesterov`) on all other parameters."""

  def axes(key_path: jax.tree_util.KeyPath, _: Any) -> contrib.MuonDimensionNumbers | None:
    found = model.matrix_axes(path_of(key_path))
    return None if found is None else contrib.MuonDimensionNumbers(*found)

  direction = contrib.muon(1.0, ns_steps=ns_steps, beta=beta, nesterov=nesterov,
                           muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(axes, params))
  return optax.chain(direction, optax.scale(-1.0), decay)  # contrib.muon already descends


def layerwise(optimizer: optax.GradientTransformation, stacked: tuple[str, ...]) -> optax.GradientTransformation:
  """Apply an optimizer to each layer separately, although the parameters of layers are stacked.

  For optimizers whose update combines the elements of a parameter (norms, factored moments, matrix products).

  Args:
    optimizer: what to apply.
    stacked: subtrees whose leaves are stacked along axis 0.

  Returns:
    A transformation whose state is a tuple: one state per stacked subtree, stacked like it, and one for the rest.
  """

  def init(params: Any) -> Any:
    stacks, rest = _split(params, stacked)
    states = [jax.vmap(optimizer.init)(stack) if jax.tree.leaves(stack) else _no_state(optimizer) for stack in stacks]
    return *states, optimizer.init(rest)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    (stack_updates, rest_updates), (stacks, rest) = _split(updates, stacked), _split(params, stacked)
    results = [jax.vmap(optimizer.update)(update, stack_state, stack) if jax.tree.leaves(stack) else (None, stack_state)
               for update, stack_state, stack in zip(stack_updates, state[:-1], stacks, strict=True)]
    updates, rest_state = optimizer.update(rest_updates, state[-1], rest)
    for path, (update, _) in zip(stacked, results, strict=True):
      updates = updates if update is None else _with_subtree(updates, path.split('/'), update)
    return updates, (*(stack_state for _, stack_state in results), rest_state)

  return optax.GradientTransformation(init, update)


def _no_state(optimizer: optax.GradientTransformation) -> Any:
  """Return the state for a stack without leaves: tuples of None, the only template by which Orbax skips saved state."""
  return jax.tree.map(lambda _: None, optimizer.init({}), is_leaf=lambda x: hasattr(x, '_fields'))


def _split(tree: Any, paths: tuple[str, ...]) -> tuple[list[Any], Any]:
  """Return (the subtrees at paths, {} for one that the tree lacks; the tree without them)."""
  found = []
  for path in paths:
    subtree = tree
    for name in path.split('/'):
      subtree = subtree.get(name, {})
    found.append(subtree)
    tree = _without_subtree(tree, path.split('/'))
  return found, tree


def _without_subtree(tree: Any, names: list[str]) -> Any:
  first, *rest = names
  if first not in tree:
    return tree
  if not rest:
    return {name: subtree for name, subtree in tree.items() if name != first}
  return dict(tree, **{first: _without_subtree(tree[first], rest)})


def _with_subtree(tree: Any, names: list[str], subtree: Any) -> Any:
  first, *rest = names
  return dict(tree, **{first: _with_subtree(tree[first], rest, subtree) if rest else subtree})


# Each row takes the weight-decay transformation and the model, and returns a direction of ascent, which `optim.build`
# scales by -lr.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'adafactor': adafactor,
    'adam': adam,
    'adamw': adamw,
    'lamb': lamb,
    'lion': lion,
    'muon': muon,
    'sgd': sgd,
}

"""The house: arrows point down, no circles, and the doors that must stay shut."""
import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'vit_jax'

# Floor of every room; a module may import its own floor and those below.
FLOORS = {
    'choices': 0, 'durations': 0, 'hosts': 0, 'losses': 0, 'normalization': 0, 'platform': 0, 'preprocessing': 0,
    'roll_call': 0,
    'data': 1, 'models': 1,
    'evaluators': 2, 'inference': 2, 'pretrained': 2, 'training': 2,
    'config': 3, 'train': 3, 'transfer': 3, 'workdir': 3,
    'commands': 4, 'convert': 4, 'describe': 4, 'evaluate': 4, 'main': 4, 'predict': 4,
}


def modules():
  return sorted(PACKAGE.rglob('*.py'))


def dotted(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(path):
  """Dotted names a file imports, inside functions too; `from a import b` gives a.b where that is a module, else a."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        inner = ROOT.joinpath(*node.module.split('.'), alias.name)
        is_module = inner.with_suffix('.py').exists() or (inner / '__init__.py').exists()
        yield f'{node.module}.{alias.name}' if is_module else node.module


def graph():
  return {dotted(path): {name for name in imports(path) if name.split('.')[0] == 'vit_jax'} for path in modules()}


def room(name):
  return name.split('.')[1] if '.' in name else None


def test_every_room_has_a_floor():
  assert {room(name) for name in graph()} - {None} == set(FLOORS)


def test_arrows_point_down():
  upward = [f'{name} → {other}' for name, others in graph().items() if room(name)
            for other in others if room(other) and FLOORS[room(other)] > FLOORS[room(name)]]
  assert not upward


def test_no_circles():
  arrows, done = graph(), set()

  def visit(name, trail):
    assert name not in trail, ' → '.join([*trail, name])
    if name not in done:
      for other in arrows.get(name, ()):
        visit(other, [*trail, name])
      done.add(name)

  for name in arrows:
    visit(name, [])


def test_models_and_data_do_not_know_each_other():
  for name, others in graph().items():
    if room(name) in ('models', 'data'):
      other_room = {'models': 'data', 'data': 'models'}[room(name)]
      assert not [other for other in others if room(other) == other_room], name


@pytest.mark.parametrize('folder, forbidden', [
    ('vit_jax', {'tensorflow', 'torch'}),
    ('vit_jax/data', {'jax', 'flax', 'optax', 'orbax'}),  # Grain's workers must not hold an accelerator
    ('vit_jax/models', {'optax', 'orbax', 'grain', 'ml_collections'}),
])
def test_doors_that_stay_shut(folder, forbidden):
  for path in (ROOT / folder).rglob('*.py'):
    found = {name.split('.')[0] for name in imports(path)} & forbidden
    assert not found, f'{path} imports {found}'


def test_configs_import_only_ml_collections_and_common():
  for path in (ROOT / 'configs').glob('*.py'):
    assert set(imports(path)) <= {'ml_collections', 'configs.common'}, path


def test_public_names_have_docstrings():
  bare = []
  for path in modules():
    tree = ast.parse(path.read_text())
    nodes = [tree, *(node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                     and not node.name.startswith('_'))]
    bare += [f'{path}: {getattr(node, "name", "module")}' for node in nodes if not ast.get_docstring(node)]
  assert not bare


def test_files_and_functions_stay_short():
  long = []
  for path in modules():
    text = path.read_text()
    if text.count('\n') > 300:
      long.append(str(path))
    long += [f'{path}:{node.name}' for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
             and node.end_lineno - node.lineno + 1 > (100 if path.name == 'train.py' else 60)]
  assert not long

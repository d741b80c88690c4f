"""Import layering rules: imports point down, no cycles, and imports that no room may have."""
import ast

import pytest

from tests.rooms import BY_NAME, DOCUMENT, MOST_FILES, PACKAGE, ROOMS, ROOT, document, room_of


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


def test_every_folder_is_a_room_and_none_is_full():
  folders = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob('*') if path.is_dir() and path.name != '__pycache__'}
  assert folders == set(BY_NAME) - {''}
  full = [room.name for room in ROOMS if len(list((PACKAGE / room.name).glob('*.py'))) - 1 > MOST_FILES]
  assert not full


def test_imports_point_down():
  upward = [f'{name} → {other}' for name, others in graph().items() if name != 'vit_jax'
            for other in others if other != 'vit_jax' and room_of(other).floor > room_of(name).floor]
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
    top = room_of(name).name.split('/')[0]
    if top in ('models', 'data'):
      banned = {'models': 'data', 'data': 'models'}[top]
      assert not [other for other in others if room_of(other).name.split('/')[0] == banned], name


@pytest.mark.parametrize('folder, forbidden', [
    ('vit_jax', {'tensorflow', 'torch'}),
    ('vit_jax/data', {'jax', 'flax', 'optax', 'orbax'}),  # worker processes must not hold an accelerator
    ('vit_jax/models', {'optax', 'orbax', 'grain', 'ml_collections'}),
])
def test_doors_that_stay_shut(folder, forbidden):
  for path in (ROOT / folder).rglob('*.py'):
    found = {name.split('.')[0] for name in imports(path)} & forbidden
    assert not found, f'{path} imports {found}'


def test_recipes_import_only_ml_collections_and_their_common_tables():
  """Loading a recipe is quick: no jax."""
  for path in (ROOT / 'configs').glob('*.py'):
    assert set(imports(path)) <= {'ml_collections', 'vit_jax.configs', 'vit_jax.base.choices'}, path


def test_the_tree_in_the_document_is_up_to_date():
  text = DOCUMENT.read_text()
  assert document(text) == text, 'run: python -m tests.rooms'


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

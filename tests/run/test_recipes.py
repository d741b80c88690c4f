"""Recipes are found by file and by name, loaded with their argument, and overridden key by key."""
import subprocess
import sys

import ml_collections
import pytest

from tests import tiny
import vit_jax
from vit_jax.base.errors import UserError
from vit_jax.run import recipes

RECIPE = '''
import ml_collections

def get_config({parameters}):
  return ml_collections.ConfigDict(dict(seed={seed}, data=dict(name='digits')))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working folder with a file `digits`, which has the name of a recipe, and `mine.py`, which takes an argument."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(RECIPE.format(parameters='text', seed='int(text)'))
  (tmp_path / 'plain.py').write_text(RECIPE.format(parameters='', seed=7))
  (tmp_path / 'empty.py').write_text('')
  return tmp_path


def test_names_are_the_files_of_configs():
  files = {path.stem for path in (tiny.ROOT / 'configs').glob('*.py')}
  assert set(recipes.names()) == files - {'__init__', 'common'}
  assert {'digits', 'vit', 'vit_b16', 'finetune'} <= files


@pytest.mark.parametrize('argument', ['', ':l16,imagenet21k', ':'])
def test_find_by_name_keeps_the_argument(argument):
  assert recipes.find(f'vit{argument}') == f'{tiny.ROOT / "configs" / "vit.py"}{argument}'


@pytest.mark.parametrize('argument', ['', ':3', ':a:b'])
def test_find_by_file_keeps_the_argument(argument, folder):
  assert recipes.find(f'mine.py{argument}') == f'{folder / "mine.py"}{argument}'
  assert recipes.find(f'{folder}/mine.py{argument}') == f'{folder / "mine.py"}{argument}'


def test_a_file_wins_over_a_recipe_of_the_same_name(folder):
  (folder / 'vit').write_text('')
  assert recipes.find('vit:x') == f'{folder / "vit"}:x'
  (folder / 'digits').mkdir()  # a folder is no recipe
  assert recipes.find('digits') == str(tiny.ROOT / 'configs' / 'digits.py')


def test_find_expands_the_home_folder(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  assert recipes.find('~/mine.py:3') == f'{folder / "mine.py"}:3'


@pytest.mark.parametrize('name', ['vit_b17', 'configs/vit_b17.py', 'common', '__init__', ''])
def test_find_lists_the_recipes(name, folder):
  with pytest.raises(UserError) as error:
    recipes.find(f'{name}:imagenet')
  assert f'recipe {name!r}' in str(error.value) and str(recipes.names()) in str(error.value)


def test_find_suggests_the_nearest_recipe(folder):
  with pytest.raises(UserError, match="Try 'vit_b16'"):
    recipes.find('configs/vit_b16.py')  # the command of a clone, run where there is none


def test_load_passes_the_argument(folder):
  assert recipes.load('mine.py:3').seed == 3
  assert recipes.load('vit:l16,imagenet21k').model.variant == 'L/16'
  assert recipes.load('vit_b16').model.variant == 'B/16'


@pytest.mark.parametrize('name, message', [
    ('plain.py:3', "recipe 'plain.py:3': .*got '3'"), ('digits:3', "recipe 'digits:3': .*got '3'"),
    ('mine.py', "recipe 'mine.py': .*write mine.py:ARGUMENT"), ('empty.py', 'no function get_config'),
    ('vit:x99', "MODEL: unknown 'x99'; choose from .*'b16'"),
])
def test_load_refuses(name, message, folder):
  with pytest.raises(UserError, match=message):
    recipes.load(name)


def test_load_keeps_errors_of_the_recipe_itself(folder):
  """A defect in a recipe keeps its type and traceback."""
  (folder / 'broken.py').write_text('def get_config():\n  return 1 / 0\n')
  with pytest.raises(ZeroDivisionError):
    recipes.load('broken.py')


def test_recipe_applies_dotted_overrides():
  """Keys of the recipe, of sections it has, and of sections it leaves out; anything else stays as it was."""
  plain = recipes.load('vit_b16').to_dict()
  config = vit_jax.recipe('vit_b16', seed=3, **{
      'data.batch_size': 512, 'data.image_size': (32, 48), 'optim.options.b2': 0.95, 'parallel.strategy': 'mesh',
      'optim.peak_lr': 'wrong'})
  assert isinstance(config, ml_collections.ConfigDict)
  plain['seed'] = 3
  plain['data'].update(batch_size=512, image_size=(32, 48))
  plain['optim']['options']['b2'], plain['optim']['peak_lr'] = 0.95, 'wrong'
  plain['parallel'] = {'strategy': 'mesh'}
  assert config.to_dict() == plain


def test_recipe_refuses_a_key_inside_a_value():
  with pytest.raises(UserError, match=r'^seed.x: .*seed.* not a section; got 0'):
    vit_jax.recipe('digits', **{'seed.x': 1})


def test_loading_a_recipe_imports_no_jax():
  script = "import sys, vit_jax; vit_jax.recipe('finetune:any,folder'); print(sorted({'jax', 'flax'} & set(sys.modules)))"
  output = subprocess.run([sys.executable, '-c', script], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
  assert output.stdout.strip() == '[]'

"""What is installed: the wheel's contents, training from it in an empty folder, its commands, the pinned versions."""
import ast
import email
import importlib.metadata
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import zipfile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

from tests import tiny
from vit_jax import __main__ as commands
from vit_jax.run import recipes

SOURCES = ('vit_jax', 'configs', 'experiments', 'tests')


def run(arguments, folder, **variables):
  """Run a command in a folder; its environment has no trace of this clone."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': '', **variables}
  return subprocess.run([str(argument) for argument in arguments], cwd=folder, env=env, text=True, capture_output=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy of the sources: building writes into the folder, and reads what it once wrote there."""
  source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in SOURCES:
    shutil.copytree(tiny.ROOT / name, source / name, ignore=shutil.ignore_patterns('golden', '__pycache__'))
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(tiny.ROOT / name, source)
  build = run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index', '--no-build-isolation',
               f'--wheel-dir={target}', source], source)
  assert build.returncode == 0, build.stderr
  return next(target.glob('*.whl'))


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
  """A folder with the wheel installed."""
  folder = tmp_path_factory.mktemp('site')
  install = run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', f'--target={folder}',
                 wheel], folder)
  assert install.returncode == 0, install.stderr
  return folder


def test_nothing_but_vit_jax_is_installed_at_the_top(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  top = {name.partition('/')[0] for name in names}
  assert {name for name in top if not name.endswith('.dist-info')} == {'vit_jax'}


def test_the_wheel_has_every_module_and_recipe(wheel):
  names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith('.py')}
  modules = {str(path.relative_to(tiny.ROOT)) for path in (tiny.ROOT / 'vit_jax').rglob('*.py')}
  files = {f'vit_jax/configs/{path.name}' for path in (tiny.ROOT / 'configs').glob('*.py')}
  assert names == modules | files
  # In a clone vit_jax/configs leads to configs/; in a wheel it is configs/.
  assert zipfile.ZipFile(wheel).read('vit_jax/configs/__init__.py') == (tiny.ROOT / 'configs/__init__.py').read_bytes()


def test_the_wheel_has_the_names_of_imagenet(wheel):
  name = 'vit_jax/pretrained/classes/imagenet1k.txt'
  assert zipfile.ZipFile(wheel).read(name) == (tiny.ROOT / name).read_bytes()


def test_a_recipe_trains_by_name_in_an_empty_folder(site, tmp_path):
  """The installed command, recipes that import their siblings, and evaluation of the run, without a clone."""
  work, data = tmp_path / 'work', tmp_path / 'data'
  work.mkdir()
  where = run([sys.executable, '-c', 'import vit_jax.configs.common as c; print(c.__file__)'], work, PYTHONPATH=site)
  assert pathlib.Path(where.stdout.strip()).is_relative_to(site), where.stderr
  trained = run([site / 'bin' / 'vit-jax', 'train', '--config=digits', '--workdir=run', f'--config.data.data_dir={data}',
                 '--config.train.duration=3 steps', '--config.train.log_every=1 steps', '--config.optim.warmup=1 steps',
                 '--config.model.depth=1'], work, PYTHONPATH=site)
  assert trained.returncode == 0, trained.stderr
  assert [step for step, _ in tiny.metrics(work / 'run', ('train/loss',))] == [1, 2, 3]
  evaluated = run([sys.executable, '-m', 'vit_jax.evaluate', '--workdir=run'], work, PYTHONPATH=site)
  assert evaluated.returncode == 0 and 'test/accuracy' in evaluated.stdout, evaluated.stderr


def test_an_unknown_recipe_is_an_error_that_lists_the_recipes(site, tmp_path):
  trained = run([site / 'bin' / 'vit-jax', 'train', '--config=configs/digits.py', '--workdir=run'], tmp_path,
                PYTHONPATH=site)
  assert trained.returncode == 1 and 'Traceback' not in trained.stderr
  assert "recipe 'configs/digits.py'" in trained.stderr and str(recipes.names()) in trained.stderr


def test_the_list_of_commands_needs_no_imports():
  script = ("import sys; import vit_jax.__main__ as m; sys.argv[1:] = []; m.main(); "
            "assert not {'jax', 'numpy', 'absl'} & set(sys.modules)")
  listed = run([sys.executable, '-c', script], tiny.ROOT)
  assert listed.returncode == 0, listed.stderr
  for command, module in commands.COMMANDS.items():
    summary = next(line for line in listed.stdout.splitlines() if line.split()[:1] == [command])
    assert f'vit_jax.{module} ' in summary  # the first line of each docstring has the command


@pytest.mark.parametrize('arguments', [[], ['--help'], ['help']])
def test_the_list_of_commands_is_quick(arguments):
  """Less than 0.1 s of CPU time more than a Python that does nothing; the best of five runs each."""
  def best(*command):
    times = []
    for _ in range(5):
      before = resource.getrusage(resource.RUSAGE_CHILDREN)
      assert run([sys.executable, *command], tiny.ROOT).returncode == 0
      after = resource.getrusage(resource.RUSAGE_CHILDREN)
      times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)
  assert best('-m', 'vit_jax', *arguments) - best('-c', 'pass') < 0.1


def test_an_unknown_command_is_an_error_that_lists_the_commands():
  listed = run([sys.executable, '-m', 'vit_jax', 'trian'], tiny.ROOT)
  assert listed.returncode == 1
  assert "'trian'" in listed.stderr and str(list(commands.COMMANDS)) in listed.stderr


@pytest.mark.parametrize('command', commands.COMMANDS)
def test_help_of_a_command_has_that_of_its_module(command):
  """`vit-jax COMMAND --help` has all that `python -m vit_jax.MODULE --help` has, and imports no jax."""
  script = ("import sys; from vit_jax.__main__ import main\n"
            f"sys.argv[1:] = [{command!r}, '--help']\n"
            "try:\n  main()\nfinally:\n  assert 'jax' not in sys.modules")
  ours = run([sys.executable, '-c', script], tiny.ROOT)
  module = run([sys.executable, '-m', f'vit_jax.{commands.COMMANDS[command]}', '--help'], tiny.ROOT)
  assert ours.stderr == '' and ours.returncode == module.returncode
  name = str(tiny.ROOT / 'vit_jax' / f'{commands.COMMANDS[command]}.py')
  assert module.stdout.count('--') > 3
  assert set(module.stdout.replace(name, f'vit-jax {command}').splitlines()) <= set(ours.stdout.splitlines())


def test_the_old_name_of_the_audit_names_the_new_one():
  """`python -m vit_jax.data.audit`, which is a package now."""
  old = run([sys.executable, '-m', 'vit_jax.data.audit', 'digits'], tiny.ROOT)
  assert old.returncode == 1 and 'run python -m vit_jax.audit ' in old.stderr


@pytest.fixture(scope='module')
def requirements(wheel):
  """The requirements in the wheel's metadata, by extra; '' is the plain install."""
  metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith('.dist-info/METADATA'))
  message = email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata))
  return {extra: [found for found in map(Requirement, message.get_all('Requires-Dist'))
                  if not found.marker or found.marker.evaluate({'extra': extra})]
          for extra in ('', *message.get_all('Provides-Extra'))}


def test_every_requirement_is_pinned_within_its_range(requirements):
  """constraints.txt has each package of the plain install and of [test] and [dev], at a version that its range allows."""
  lines = [line for line in (tiny.ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
  pins = {canonicalize_name(name): version for name, _, version in (line.partition('==') for line in lines)}
  found = {requirement.name: requirement for extra in ('', 'test', 'dev') for requirement in requirements[extra]}
  assert {'jax', 'pytest', 'ruff', 'pyright'} <= set(found)
  for name, requirement in found.items():
    assert requirement.specifier.contains(pins[canonicalize_name(name)]), requirement
    assert '<' in str(requirement.specifier), f'{requirement} has no upper end'


def test_every_import_is_a_requirement_of_the_plain_install(requirements):
  """Also lazy imports. Pictures may need [plot]: those of vit_jax.analysis, and the figures that `base.pictures` makes."""
  distributions = importlib.metadata.packages_distributions()
  for path in [*(tiny.ROOT / 'vit_jax').rglob('*.py'), *(tiny.ROOT / 'configs').rglob('*.py')]:
    extra = 'plot' if 'analysis' in path.parts or path.name == 'pictures.py' else ''
    required = {canonicalize_name(requirement.name) for requirement in requirements[extra]}
    for name in top_level_imports(path) - set(sys.stdlib_module_names) - {'vit_jax'}:
      assert {canonicalize_name(distribution) for distribution in distributions.get(name, [])} & required, (path, name)


def top_level_imports(path):
  """The first parts of the names that a file imports, also inside functions."""
  nodes = list(ast.walk(ast.parse(path.read_text())))
  return {alias.name.partition('.')[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names} | {
      node.module.partition('.')[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_an_editable_install_is_found_from_the_folder_that_holds_the_clone(tmp_path):
  """A clone is often named vit_jax itself, and a folder of that name in the working directory must not hide it."""
  clone, site = tmp_path / 'vit_jax', tmp_path / 'site'
  for name in SOURCES:
    shutil.copytree(tiny.ROOT / name, clone / name, ignore=shutil.ignore_patterns('golden', '__pycache__'))
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
    shutil.copy(tiny.ROOT / name, clone)
  install = run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--no-build-isolation',
                 f'--target={site}', '--editable', clone], clone)
  assert install.returncode == 0, install.stderr
  # Leave out an editable install that the environment of the tests may have.
  script = """import os, site, sys
sys.path[:] = [path for path in sys.path if path and not os.path.exists(os.path.join(path, 'vit_jax', '__init__.py'))]
sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in str(finder)]
site.addsitedir(sys.argv[1])
sys.path.insert(0, '')
import vit_jax
print(vit_jax.__file__)"""
  found = run([sys.executable, '-c', script, site], tmp_path)
  assert found.stdout.strip() == str(clone / 'vit_jax' / '__init__.py'), found.stderr

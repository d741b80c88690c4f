"""Documents: links lead somewhere, files and modules that they mention exist, commands are those that CI runs."""
import ast
import dataclasses
import re
import typing

import pytest

from tests.rooms import PACKAGE, ROOT
import vit_jax
from vit_jax.models.config import ViTConfig
from vit_jax.objectives import OBJECTIVES
from vit_jax.run import config, recipes

DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('experiments/**/*.md')])
README = ROOT / 'README.md'
# The left column has names that are gone.
OLD_NAMES = re.compile(r'^\| `[^|]*` \|', re.MULTILINE)
# What runs and users write, and files that are downloaded or described.
NOT_IN_THE_CLONE = re.compile(r'^(runs|checkpoints|tensorboard|train)/')


def ids(path):
  return str(path.relative_to(ROOT))


def text_of(path):
  """The text of a document; of the changelog without old names."""
  text = path.read_text(encoding='utf-8')
  return OLD_NAMES.sub('| |', text) if path.name == 'CHANGELOG.md' else text


def slugs(path):
  """The anchors of a document's headings, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def module_file(name):
  """The file of a dotted module or package name, which need not be there."""
  path = ROOT.joinpath(*name.split('.'))
  return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def code_blocks(text, language=''):
  return re.findall(rf'^```{language}\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def test_every_page_is_there():
  """The patterns find the documents, and the README links to every page of docs/."""
  assert {ids(path) for path in DOCUMENTS} >= {'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'docs/architecture.md',
                                               'experiments/benchmarks/tpu_step.md'}
  linked = set(re.findall(r'\]\((docs/\w+\.md)\)', README.read_text(encoding='utf-8')))
  assert linked == {ids(path) for path in ROOT.glob('docs/*.md')}


def test_the_list_of_public_names_is_complete():
  listed = re.findall(r'^\| `vit_jax\.(\w+)` \|', (ROOT / 'docs' / 'python.md').read_text(), re.MULTILINE)
  assert sorted(listed) == sorted(vit_jax.__all__)


@pytest.mark.parametrize('path', DOCUMENTS, ids=ids)
def test_links_lead_somewhere(path):
  for target in re.findall(r'\]\(([^)]+)\)', text_of(path)):
    if target.startswith(('http:', 'https:')):
      continue
    file, _, anchor = target.partition('#')
    found = (path.parent / file).resolve() if file else path
    assert found.exists(), target
    assert not anchor or anchor in slugs(found), target


@pytest.mark.parametrize('path', DOCUMENTS, ids=ids)
def test_files_that_are_mentioned_exist(path):
  """Between backticks or in a command: from the root, from the package or beside the document."""
  mentioned = re.findall(r'`([\w./-]+/|[\w./-]+\.(?:py|md|sh|yaml|toml))(?=[:`])', text_of(path))
  mentioned += re.findall(r'(?<![\w/.~])((?:configs|docs|experiments|tests|vit_jax)/[\w./-]*\w)', text_of(path))
  for name in mentioned:
    if not NOT_IN_THE_CLONE.search(name):
      assert any((folder / name).exists() for folder in (ROOT, PACKAGE, path.parent)), name


@pytest.mark.parametrize('path', DOCUMENTS, ids=ids)
def test_modules_that_are_mentioned_exist(path):
  """`python -m MODULE`, and dotted names between backticks up to the last part that may be a function."""
  text = text_of(path)
  for name in re.findall(r'python -m ((?:vit_jax|experiments|tests)[\w.]*)', text):
    assert module_file(name).exists() or name == 'vit_jax.MODULE', name
  for name in re.findall(r'`(vit_jax(?:\.\w+)+)`', text):
    parent, _, last = name.rpartition('.')
    if parent == 'vit_jax':
      assert module_file(name).exists() or last in vit_jax.__all__, name
    elif not module_file(name).exists():
      source = module_file(parent).read_text(encoding='utf-8')
      assert re.search(rf'^(?:def |class )?{last}\b', source, re.MULTILINE), name


@pytest.mark.parametrize('path', DOCUMENTS, ids=ids)
def test_recipes_that_are_mentioned_load(path):
  """Those of commands, with their arguments; capitals stand for something to fill in."""
  for name in re.findall(r"--config=([\w./:,]+)", text_of(path)):
    if not re.search(r':.*[A-Z]', name):
      recipes.load(name if '/' not in name else f'{ROOT}/{name}')


def config_keys():
  """{'SECTION.KEY', 'KEY', …} that a recipe may set."""
  hints = typing.get_type_hints(config.RunConfig)
  sections = [*hints.items(), ('model', ViTConfig), *(('objective', kind.Config) for kind in OBJECTIVES.values())]
  return set(hints) | {f'{name}.{field.name}' for name, section in sections
                       if dataclasses.is_dataclass(section) for field in dataclasses.fields(section)}


@pytest.mark.parametrize('path', [*DOCUMENTS, *ROOT.glob('configs/*.py')], ids=ids)
def test_config_keys_that_are_mentioned_exist(path):
  """Of --config.SECTION.KEY; the options of an optimizer are checked elsewhere."""
  for key in re.findall(r'--config\.([a-z][\w.]*\w)', text_of(path)):
    assert key in config_keys() or re.match(r'optim\.options\.|evaluators\.', key), key


@pytest.mark.parametrize('path', DOCUMENTS, ids=ids)
def test_python_is_valid(path):
  for block in code_blocks(text_of(path), 'python'):
    ast.parse(block)


def test_the_readme_is_short_and_its_lines_are_ordinary():
  text = README.read_text(encoding='utf-8')
  assert len(text.split()) <= 1500
  prose = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
  assert not [line for line in prose.splitlines() if len(line) > 105 and not line.startswith('|')]


def test_ci_runs_the_commands_of_the_readme():
  """The first two code blocks: install and train, install and test. CI adds --quiet and another workdir."""
  ci = (ROOT / '.ci' / 'run').read_text().replace(' --quiet', '')
  commands = [command.strip() for block in code_blocks(README.read_text(encoding='utf-8'))[:2]
              for command in block.partition(' --workdir=')[0].split('&&')]
  assert len(commands) == 4
  for command in commands:
    assert re.search(rf'^{re.escape(command)}(?: --workdir=.*)?$', ci, re.MULTILINE), command

"""Measure how the code is laid out: files, detours, annotations, private API; print a Markdown table.

  python experiments/benchmarks/structure.py > structure.md

Counts and runs the checkout in the working directory, on a CPU, in half a minute; writes nothing there. The rules:
Hops of a batch: distinct functions of the package, and the files they are in, that run from asking the training stream
  for its first batch until it is there. The stream is opened before and does not count, nor does what brings a batch to
  the devices. Data: a folder of JPEG photographs that note their orientation, `inception_crop|flip`, one thread, no
  workers, no cache.
Hops of a config value: distinct functions of the package that hold `optim.peak_lr`, set to an unusual number on the
  command line of `vit_jax.main`, during a run of one step. A function holds it where an argument, a local or enclosing
  variable, or the result is the number itself or a dict, ConfigDict, dataclass or functools.partial with a field
  `peak_lr` that is: the section `optim` in any form. The whole config, in which the section is nested, does not count,
  nor does `to_dict`, which writes the config down and does not bring it to its effect.
Functions, in both: functions, methods, properties, closures and lambdas, each counted once, however often it is called
  or made; no comprehensions, no bodies of classes and modules. Two threads make a batch: their order varies.
Annotated parameters: of all `def`, `self` and `cls` left out, `*args` and `**kwargs` included, lambdas left out.
Private API: an import or attribute of another package (the standard library's aside) with a leading underscore or in
  `tfds.core`. Each import and each use of such an attribute counts one; what an imported name is used for does not.
Written aside by hand: calls that rename a temporary path, found by its name: a regular expression, so approximate.
Lines: all lines of Python files, this file's left out.
"""
import ast
import collections
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import pathlib
import re
import runpy
import sys
import tempfile
import threading

ROOT = pathlib.Path.cwd()
PACKAGE = ROOT / 'vit_jax'
OWN = {'vit_jax', 'configs', *sys.stdlib_module_names}
PEAK_LR = 0.0012345
RENAMES = re.compile(r'\b\w*(?:aside|tmp|temp|partial)\w*(?: / [\w.]+)?\)?\.(?:replace|rename)\('
                     r'|\bos\.(?:replace|rename)\(|\bshutil\.move\(')


def training_stream(folder):
  """Open the training stream of a folder of images: the only lines that know where in the package it is."""
  options = dict(name=f'folder:{folder}', image_size=(24, 24), batch_size=16, train_transform='inception_crop|flip',
                 cache=False, threads=1)
  try:
    from vit_jax.data.loading.config import DataConfig
    from vit_jax.data.loading.dataset import Dataset
  except ImportError:  # version 0.1
    from vit_jax.data.dataset import Dataset
    data = Dataset(0, 0, 1, **options)
  else:
    data = Dataset(DataConfig(**options), seed=0)
  return iter(data.train_batches())


def traced(work, holds=lambda frame, result: True):
  """Run `work()`; list as 'FILE FUNCTION' the package's functions with a call or return for which `holds` is true."""
  found, inside = {}, f'{PACKAGE}{os.sep}'

  def look(frame, event, arg):
    code = frame.f_code
    if event not in ('call', 'return') or not code.co_filename.startswith(inside) or code in found:
      return
    is_function = code.co_name[0] != '<' or code.co_name == '<lambda>'
    is_function = is_function and code.co_name != 'to_dict'
    if is_function and code.co_flags & inspect.CO_OPTIMIZED and holds(frame, arg if event == 'return' else None):
      found[code] = True

  threading.setprofile(look)  # threads that `work` starts
  sys.setprofile(look)
  try:
    work()
  finally:
    sys.setprofile(None)
    threading.setprofile(None)
  return [f'{pathlib.Path(code.co_filename).relative_to(PACKAGE)} {code.co_qualname}' for code in found]


def hops_of_batch(folder):
  """List the functions that make the first batch."""
  import numpy as np
  from PIL import Image
  rng, exif = np.random.default_rng(0), Image.Exif()
  exif[0x0112] = 1  # upright
  for index in range(100):  # more than are made ahead
    path = folder / 'train' / ('cat', 'dog')[index % 2] / f'{index}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path, exif=exif)
  return traced(functools.partial(next, training_stream(folder)))


def hops_of_value(folder):
  """List the functions through which the learning rate goes."""
  from ml_collections import ConfigDict, FrozenConfigDict

  def is_it(value):
    if isinstance(value, functools.partial):
      value = value.keywords
    if isinstance(value, dict | ConfigDict | FrozenConfigDict):
      value = value.get('peak_lr')
    elif dataclasses.is_dataclass(value):
      value = getattr(value, 'peak_lr', None)
    return type(value) is float and value == PEAK_LR

  settings = {'data.data_dir': folder / 'data', 'optim.peak_lr': PEAK_LR, 'optim.warmup': '0 steps',
              'train.duration': '1 steps', 'model.depth': 1, 'model.width': 8, 'model.heads': 1, 'model.mlp_dim': 8}
  sys.argv = ['vit_jax.main', '--config=configs/digits.py', f'--workdir={folder / "run"}',
              *(f'--config.{key}={value}' for key, value in settings.items())]

  def run():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
      try:
        runpy.run_module('vit_jax.main', run_name='__main__')
      except SystemExit as end:
        if end.code:
          raise RuntimeError(f'the run failed:\n{errors.getvalue()}') from end

  return traced(run, lambda frame, result: is_it(result) or any(map(is_it, frame.f_locals.values())))


def annotated(trees):
  """Count (annotated parameters, all parameters)."""
  nodes = (node for tree in trees.values() for node in ast.walk(tree))
  signatures = [node.args for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
  parameters = [one for all_of in signatures
                for one in (*all_of.posonlyargs, *all_of.args, *all_of.kwonlyargs, all_of.vararg, all_of.kwarg)
                if one is not None and one.arg not in ('self', 'cls')]
  return sum(one.annotation is not None for one in parameters), len(parameters)


def private_api(trees):
  """Find the uses of other packages' private API: {file: [what, …]}."""
  found = collections.defaultdict(list)
  for path, tree in trees.items():
    modules = {}  # local name: dotted name, of other packages
    for node in ast.walk(tree):
      if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
        prefix = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
        for one in node.names:
          name, top = prefix + one.name, one.name.split('.')[0]  # `import a.b` binds a
          if name.split('.')[0] not in OWN:
            modules[one.asname or top] = name if one.asname or prefix else top
            found[path] += [name] if is_private(name) else []
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute):
        first, *rest = ast.unparse(node.value).split('.')
        base = '.'.join([modules.get(first, ''), *rest])
        if first in modules and is_private(f'{base}.{node.attr}') and not is_private(base):
          found[path].append(f'{base}.{node.attr}')
  return {path: uses for path, uses in found.items() if uses}


def is_private(name):
  """Say whether a dotted name is private API."""
  return bool(re.search(r'(^|\.)_(?!_)', name)) or f'{name}.'.startswith('tensorflow_datasets.core.')


def lines(*folders):
  """Count the lines of all Python files in folders of the checkout."""
  paths = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
  return sum(path.read_text().count('\n') for path in paths if path.name != pathlib.Path(__file__).name)


def main():
  """Count, run, print."""
  os.environ.update(JAX_PLATFORMS='cpu', JAX_DISABLE_MOST_OPTIMIZATIONS='1', JAX_ENABLE_COMPILATION_CACHE='false')
  sys.path.insert(0, str(ROOT))
  sys.dont_write_bytecode = True
  paths = sorted(PACKAGE.rglob('*.py'))
  texts = {str(path.relative_to(PACKAGE)): path.read_text() for path in paths}
  trees = {path: ast.parse(text) for path, text in texts.items()}
  rooms = collections.Counter(str(path.parent.relative_to(ROOT)) for path in paths)
  with tempfile.TemporaryDirectory() as folder:
    batch = hops_of_batch(pathlib.Path(folder) / 'photos')
    value = hops_of_value(pathlib.Path(folder))
  annotations, parameters = annotated(trees)
  private = private_api(trees)
  asides = {path: RENAMES.findall(text) for path, text in texts.items() if RENAMES.search(text)}
  files = lambda functions: len({function.split()[0] for function in functions})
  rows = {
      'files of the package': len(paths),
      'files in a room': f'at most {max(rooms.values())}: '
                         + ', '.join(f'{room} {count}' for room, count in rooms.most_common()),
      'hops of a batch': f'{len(batch)} functions, {files(batch)} files',
      'hops of a config value': f'{len(value)} functions, {files(value)} files',
      'annotated parameters': f'{annotations / parameters:.1%} ({annotations} of {parameters})',
      'private API': f'{sum(map(len, private.values()))} uses in {len(private)} files: '
                     + ', '.join(f'{path} {len(uses)}' for path, uses in private.items()),
      'written aside by hand': f'{sum(map(len, asides.values()))} places in {len(asides)} files: ' + ', '.join(asides),
      'words in README.md': len((ROOT / 'README.md').read_text().split()),
      **{f'lines of {part}': lines(*part.split(' and ')) for part in ('vit_jax', 'tests', 'experiments and configs')},
  }
  print('| measure | value |\n|---|---|')
  print('\n'.join(f'| {name} | {value} |' for name, value in rows.items()))
  for title, found in {'A batch': batch, 'A config value': value}.items():
    print(f'\n{title}, in the order of the first call:\n', *map('1. {}'.format, found), sep='\n')


if __name__ == '__main__':
  main()

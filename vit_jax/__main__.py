"""The command `vit-jax`, also `python -m vit_jax`: run one of the commands, or list them.

  vit-jax train --config=digits --workdir=runs/digits

Nothing heavy is imported before the command is known.
"""
import importlib
import pathlib
import sys

from vit_jax.base import exits

# Command: its module in vit_jax.
COMMANDS = {
    'train': 'main',
    'evaluate': 'evaluate',
    'predict': 'predict',
    'probe': 'probe',
    'convert': 'convert',
    'describe': 'describe',
    'plan': 'plan',
    'show': 'show',
    'analyze': 'analyze',
    'audit': 'audit',
}


def usage() -> str:
  """Return the list of commands, each with the first line of its module's docstring."""
  lines = ['usage: vit-jax COMMAND [flags]      (vit-jax COMMAND --help lists the flags)', '']
  lines += [f'  {name:10}{_summary(module)}' for name, module in COMMANDS.items()]
  return '\n'.join(lines)


def _summary(module: str) -> str:
  """Read the first line of a module's docstring without importing the module."""
  with pathlib.Path(__file__).with_name(f'{module}.py').open(encoding='utf-8') as source:
    return next(source).strip().strip('"')


def main() -> None:
  """Run the command that the command line names."""
  exits.exit_on_interrupt()
  name, rest = (sys.argv[1] if len(sys.argv) > 1 else '--help'), sys.argv[2:]
  if name in ('--help', '-h', 'help'):
    try:
      print(usage(), flush=True)
    except BrokenPipeError:
      exits.close_output()
    return
  if name not in COMMANDS:
    print(f'error: unknown command {name!r}; choose from {list(COMMANDS)}', file=sys.stderr)
    sys.exit(1)
  run(name, rest)


def run(name: str, arguments: list[str]) -> None:
  """Run a command and exit as it does.

  Args:
    name: one of COMMANDS.
    arguments: what follows it on the command line.
  """
  from absl import flags  # only now: the list of commands needs no flags

  from vit_jax.run import cli

  module = importlib.import_module(f'vit_jax.{COMMANDS[name]}')
  sys.argv = [f'vit-jax {name}', *arguments]  # absl's usage message and list of flags go by it
  sys.modules['__main__'].__doc__ = module.__doc__
  before = set(flags.FLAGS)
  module.define_flags()
  for flag in sorted(set(flags.FLAGS) - before):  # else --help lists only what this module defines: nothing
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])
  cli.start(module.main, sys.argv)


if __name__ == '__main__':
  main()

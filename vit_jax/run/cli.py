"""What the commands share: flags, start-up, and errors.

A user's mistake is a message and exit status 1, a fault of the machine that may pass a message and exit status 75; a
defect is a traceback. Importing this module is quick: jax is
imported only after the flags are parsed, so that --help does not wait for it.
"""
from collections.abc import Callable
import logging as stdlib_logging
import re
import sys
from typing import Any, TypeVar

from absl import app, flags, logging
import ml_collections
from ml_collections.config_flags import config_flags

from vit_jax.base import exits
from vit_jax.base.errors import UserError
from vit_jax.base.text import make_logging_printable, printable
from vit_jax.guards import output

T = TypeVar('T')


def call(function: Callable[..., T], *args: Any, interruptible: bool = True) -> T:
  """Return function(*args), or print a user's mistake without a traceback and exit with status 1; 75 for RetryError.

  --verbosity=1 shows the traceback too. Errors of the system, such as a full disk, are treated like the user's; all
  others keep their traceback.

  Args:
    function: what to call.
    *args: its arguments.
    interruptible: whether Ctrl-C raises KeyboardInterrupt in `function`, so that it can tidy up. Otherwise it ends the
      process at once until `function` handles it, because a library may swallow KeyboardInterrupt.
  """
  if interruptible:
    exits.raise_on_interrupt()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # otherwise Orbax logs 50 lines per checkpoint
    logging.get_absl_handler().setFormatter(_PlainFormatter())
  make_logging_printable()
  try:
    return function(*args)
  except BrokenPipeError as error:
    exits.run_on_failure(error)
    raise
  except (UserError, OSError) as error:
    if logging.get_verbosity() > logging.INFO:
      exits.run_before_traceback()
      raise
    print(f'error: {printable(error)}', file=sys.stderr)
    exits.run_on_failure(error)
    sys.exit(exits.status_of(error))
  except KeyboardInterrupt as error:
    exits.run_on_failure(error)
    sys.exit(exits.status_of(error))
  except Exception:
    exits.run_before_traceback()
    raise


class _PlainFormatter(stdlib_logging.Formatter):
  """Formats a message as 'warning: TEXT', without thread, file and line."""

  def format(self, record: stdlib_logging.LogRecord) -> str:
    """Return a message as a line."""
    return f'{record.levelname.lower()}: {record.getMessage()}'


def start(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
  """Parse the flags of a command and run its `main`, as absl.app.run does, but with errors in our form.

  Ctrl-C ends the process at once until `call` runs: what is being imported may swallow KeyboardInterrupt.
  """
  exits.exit_on_interrupt()
  output.open_standard_files()
  try:
    app.run(main, argv=argv, flags_parser=_parse_flags)
  except BrokenPipeError:  # whoever read the output has seen enough: `describe … | head`
    exits.close_output()


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except KeyError as error:  # ml_collections did not find the section of a key
    sections = [found[1] for argument in argv if (found := re.match(r'--?config\.(\w+)\.', argument))]
    if not any(f"'{section}'" in str(error) for section in sections):
      raise
    print(f'error: config: there is no section {error.args[0]}', file=sys.stderr)
    sys.exit(exits.EXIT_ERROR)
  except flags.Error as error:
    found = re.fullmatch(r'flag --(?:config\.)?([\w.]+)=.*?: (.*)', str(error), flags=re.DOTALL)
    missing = re.search(r'Flag (--\w+) must have a value', str(error))
    if missing:
      message = f'{missing[1]}: missing; --help lists the flags'
    else:
      message = f'{found[1]}: {_in_plain_words(found[2])}' if found else error
    print(f'error: {message}', file=sys.stderr)
    sys.exit(exits.EXIT_ERROR)


def _in_plain_words(reason: str) -> str:
  """Return what Python says of a number that it cannot read as a user would put it."""
  for pattern, expected in ((r'invalid literal for int\(\) with base 10: (.*)', 'a whole number'),
                            (r'could not convert string to float: (.*)', 'a number')):
    if found := re.fullmatch(pattern, reason):
      return f'expected {expected}, got {found[1]}'
  return reason


def no_arguments(argv: list[str], example: str = '--workdir=runs/digits') -> None:
  """Raise app.UsageError if a command that takes only flags was given arguments."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; flags look like {example}')


def set_up_compiler() -> None:
  """Make compilation fast: on GPUs, and by keeping programs from process to process; before jax computes anything."""
  from vit_jax.base import platform
  platform.prefer_cublas()
  platform.enable_compilation_cache()


class _Sections(ml_collections.ConfigDict):
  """A config whose sections exist as soon as a key in them is set."""

  def __getitem__(self, key: str) -> Any:
    if isinstance(key, str) and not key.startswith('_') and key not in self:
      self[key] = _Sections()
    return super().__getitem__(key)


class RecipeParser(config_flags.ConfigFileFlagParser):
  """Loads a recipe, by file or by name, and adds the sections it leaves out, so that any key can be overridden."""

  def parse(self, path: str) -> Any:
    """Return what the recipe's `get_config()` returns, with all sections."""
    from vit_jax.run import recipes
    try:
      config = recipes.load(path)
    except UserError as error:
      raise flags.IllegalFlagValueError(str(error)) from error
    from vit_jax.run import config as config_lib
    if not isinstance(config, ml_collections.ConfigDict):
      return config
    config = config_lib.with_all_sections(config)
    if isinstance(evaluators := config.get('evaluators', ml_collections.ConfigDict()), ml_collections.ConfigDict):
      with config.ignore_type():
        config.evaluators = _Sections(evaluators.to_dict())  # they have names that a recipe need not know
    return config


def define_config_flag(*, required: bool = True) -> None:
  """Define --config, a recipe, and --config.SECTION.KEY=VALUE."""
  # Keys that a recipe does not mention are accepted here, and checked by `run.config.read`.
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe: a file such as configs/digits.py, or the name of one that comes with vit_jax, such as '
      'vit:l16,imagenet21k; --config.SECTION.KEY=VALUE overrides a key.', lock_config=False, accept_new_attributes=True)
  flags.FLAGS['config'].parser = RecipeParser('config', lock_config=False)
  if required:
    flags.mark_flag_as_required('config')


def define_sections_flag(*names: str) -> None:
  """Define --config.SECTION.KEY=VALUE for a command that needs no recipe; `given_sections` reads them.

  Args:
    *names: of the sections, such as 'data' and 'evaluators'.
  """
  config_flags.DEFINE_config_dict(
      'config', _Sections({name: _Sections() for name in names}), lock_config=False, accept_new_attributes=True,
      help_string=f'--config.SECTION.KEY=VALUE sets a key of the sections {", ".join(names)}.')


def given_sections(*names: str) -> dict[str, dict[str, Any]]:
  """Return {section: {key: value}} of what the command line sets; the keys are checked where they are used.

  Args:
    *names: as for `define_sections_flag`.

  Raises:
    UserError: another section.
  """
  given = flags.FLAGS.config.to_dict()
  if unknown := sorted(set(given) - set(names)):
    raise UserError(f'config.{unknown[0]}: this command has no such section; choose from {list(names)}')
  return given


def define_source_flags() -> None:
  """Define what a file of weights may not say: --trained_at and --classes; `source_options` reads them."""
  flags.DEFINE_multi_integer('trained_at', None, 'Image size that the model was trained at, for files that do not say '
                             'it; twice for rows and columns.')
  flags.DEFINE_string('classes', None, 'File with the names of the classes: one per line, or JSON.')


def source_options() -> dict[str, Any]:
  """Return the arguments trained_at and class_names of `vit_jax.load`, as the flags say.

  Raises:
    UserError: a file of names that cannot be read.
  """
  from vit_jax.pretrained.classes import names
  classes = flags.FLAGS.classes
  return dict(trained_at=pair(flags.FLAGS.trained_at), class_names=names.read_file(classes) if classes else None)


def pair(numbers: list[int] | None) -> tuple[int, int] | None:
  """Return a size that was given as one number or two as (rows, columns)."""
  return (numbers[0], numbers[-1]) if numbers else None


def define_host_flags() -> None:
  """Define the flags that `start_hosts` reads."""
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, if several processes run this command; by default '
                      'taken from the TPU pod, SLURM, Open MPI or Kubernetes.')
  flags.DEFINE_integer('processes', None, 'Number of processes; 1 runs alone, whatever a cluster says.')
  flags.DEFINE_integer('process', None, 'Index of this process, from 0.')
  flags.DEFINE_float('start_timeout', 300.0, 'Seconds to wait for all processes.')


def start_hosts() -> None:
  """Connect this process to the others of its run, as the flags say."""
  from vit_jax.distributed import hosts
  values = flags.FLAGS
  hosts.start(values.coordinator, values.processes, values.process, timeout=values.start_timeout)

"""Errors that are the user's to fix: commands print their message without a traceback."""


class UserError(ValueError):
  """A mistake in a config, a flag, an argument or a file that the user gave.

  Messages start in lower case with the offending key, then say what was expected, what was given, the valid choices and
  the command that fixes it: `data.batch_size: must be divisible by 8 devices; got 60. Try 64.`
  """


class RetryError(UserError):
  """A fault of the machine that may pass: a full disk, a hang, a lost process. Commands exit with status 75.

  Messages say what failed and why, what is kept, and end with what to do, such as 'start the same command again'.
  """


class UnstatedSizeError(UserError):
  """A weight file that does not say its image size, and whose number of positions allows several."""


class FileError(UserError, OSError):
  """A path that cannot be read or written, or something in the way."""


class MissingFileError(FileError, FileNotFoundError):
  """A path where nothing is."""


class ExistingFileError(FileError, FileExistsError):
  """A path where something is already that must not be overwritten."""

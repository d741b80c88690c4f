"""Write weights in another format: `python -m vit_jax.convert SOURCE DESTINATION --to=timm`.

SOURCE is a file, a directory, a run directory or a name of public weights; DESTINATION is new: an `.npz` file (google,
big_vision), or a directory or `.safetensors` file (huggingface, timm).
"""
from collections.abc import Sequence

from absl import app, flags

from vit_jax.base.text import printable
from vit_jax.run import cli


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('to', None, "'google', 'big_vision', 'huggingface' or 'timm'; by default 'google' if DESTINATION "
                      "ends in .npz, else 'huggingface'.")
  flags.DEFINE_bool('approximate', False, "Accept that the format's own code uses another GELU form or LayerNorm "
                    'epsilon than the model, so that outputs differ slightly.')
  flags.DEFINE_string('dtype', None, "'float32', 'float16' or 'bfloat16'; by default that of SOURCE.")
  flags.DEFINE_bool('strict', True, 'Treat missing, unused and non-finite arrays as errors.')
  flags.DEFINE_bool('ema', False, 'For a run directory or a checkpoint with an EMA: take the EMA.')
  flags.DEFINE_multi_integer('image_size', None, 'Image size to convert to, which resizes the position embedding; '
                             'twice for rows and columns.')
  cli.define_source_flags()


def main(argv: Sequence[str]) -> None:
  """Convert and print what was done."""
  if len(argv) != 3:
    raise app.UsageError(f'expected SOURCE DESTINATION, got {argv[1:]}')
  from vit_jax.pretrained.convert import convert  # after the flags: --help need not wait for jax
  values = flags.FLAGS
  lines = cli.call(lambda: convert(argv[1], argv[2], format=values.to, approximate=values.approximate,
                                   strict=values.strict, ema=values.ema, image_size=cli.pair(values.image_size),
                                   dtype=values.dtype, **cli.source_options()))
  print(printable('\n'.join(lines)))


if __name__ == '__main__':
  define_flags()
  cli.start(main)

"""The command `show`."""
from PIL import Image

from tests import tiny


def test_command(data_dir, tmp_path):
  arguments = ('--config=configs/digits.py', f'--config.data.data_dir={data_dir}', '--config.mix.cutmix=1.0', '--count=4')
  process = tiny.command('show', *arguments, '--draws=2', f'--output={tmp_path / "sheet.png"}')
  output, error = process.communicate()
  assert process.returncode == 0 and f'Wrote {tmp_path / "sheet.png"}' in output, error
  with Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.width > 3 * 96

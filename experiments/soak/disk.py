"""A small file system in memory, which a fault can fill."""
import pathlib
import subprocess


def mount(folder: pathlib.Path, megabytes: int) -> bool:
  """Mount a small file system in memory; return whether this is allowed here."""
  folder.mkdir(parents=True, exist_ok=True)
  done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)],
                        capture_output=True, check=False)
  return done.returncode == 0


def unmount(folder: pathlib.Path) -> None:
  """Undo `mount`."""
  subprocess.run(['umount', '--lazy', str(folder)], capture_output=True, check=False)

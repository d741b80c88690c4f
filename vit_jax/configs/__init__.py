"""The recipes of `configs/` under their importable name; setup.py puts them here in a wheel, in place of this file."""
import pathlib

# In a clone the recipes are at the top. Not `import configs`: any program may have a package of that name.
__path__ = [str(pathlib.Path(__file__).parents[2] / 'configs')]

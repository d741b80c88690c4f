"""Install vit_jax: `pip install -e .`, or with extras `pip install -e '.[test]'`.

Each range is of versions that the tests ran with; `constraints.txt` pins the exact set of continuous integration.
"""
import pathlib
import re
import shutil

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'$", (HERE / 'vit_jax' / '__init__.py').read_text(), re.MULTILINE)[1]

PLOT = ['matplotlib>=3.8,<4']
TEST = [
    'beartype>=0.23,<1',  # checks the array shapes in signatures
    'pytest>=8,<10',
    'pytest-xdist>=3.6,<4',
    'setuptools>=70.1,<90',  # builds the wheel that a test installs, without the network
    *PLOT,
]



class BuildWithRecipes(build_py):
  """Copy the recipes of `configs/` into the package as `vit_jax.configs`; there is no top-level package `configs`.

  A mapping in `package_dir` would do that too, but with it an editable install is found only after the folders of the
  working directory: where a clone named vit_jax is, `import vit_jax` would find that folder instead of the package.
  """

  def run(self) -> None:
    """Build, then copy."""
    super().run()
    if not self.editable_mode:
      for path in sorted((HERE / 'configs').glob('*.py')):
        shutil.copy(path, pathlib.Path(self.build_lib) / 'vit_jax' / 'configs' / path.name)


setuptools.setup(
    name='vit_jax',
    version=VERSION,
    description='Pre-train, fine-tune and study Vision Transformers in JAX, TPU first.',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['vit_jax', 'vit_jax.*']),
    package_dir={'': '.'},
    package_data={'vit_jax.pretrained.classes': ['*.txt']},
    cmdclass={'build_py': BuildWithRecipes},
    entry_points={'console_scripts': ['vit-jax = vit_jax.__main__:main']},
    install_requires=[
        'absl-py>=2.1,<3',
        'array_record>=0.8,<0.9',  # records on disk with random access
        'clu>=0.0.12,<0.1',
        'etils[epath]>=1.10,<2',  # the same interface for local and gs:// paths
        'flax>=0.12.8,<0.13',
        'jax>=0.10,<0.13',
        'jaxtyping>=0.3.11,<0.4',  # array shapes in signatures; only tests check them
        'ml-collections>=1.0,<2',
        'ml_dtypes>=0.5,<1',
        'numpy>=2,<3',
        'opencv-python-headless>=4.12,<6',  # resizes without antialiasing as tf.image does, 10 times as fast as Pillow
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12.8,<0.13',
        'pillow>=11,<14',
        'safetensors>=0.5,<1',
        'scikit-learn>=1.5,<2',  # contains the digits dataset
        'scipy>=1.13,<2',
        'simplejpeg>=1.9,<2',  # JPEG by libjpeg-turbo 3, which is inside the wheel
        'tensorboardX>=2.6.2,<3',  # event files without TensorFlow
        'tensorflow-datasets>=4.9.10,<5',
        'tqdm>=4.66,<5',
    ],
    extras_require={
        'tpu': ['jax[tpu]', 'gcsfs'],
        'cuda': ['jax[cuda13]'],
        # Only to build TFDS datasets from raw archives; the command of TFDS 4.9.10 does not start without the last two.
        'prepare': ['tensorflow-cpu>=2.18,<3', 'apache-beam>=2.60,<3', 'mlcroissant>=1.0,<2'],
        'plot': PLOT,
        'test': TEST,
        # [nodejs] is a wheel with Node.js, which pyright would otherwise download.
        'dev': [*TEST, 'pyright[nodejs]>=1.1.414,<2', 'ruff>=0.17,<1'],
    },
)

"""The old name of a command: `python -m vit_jax.data.audit` runs `vit_jax.audit`."""
import runpy

if __name__ == '__main__':
  runpy.run_module('vit_jax.audit', run_name='__main__', alter_sys=True)

"""The audit command's former name: says the new one."""
import sys

if __name__ == '__main__':
  print('error: python -m vit_jax.data.audit: has moved; run python -m vit_jax.audit with the same arguments',
        file=sys.stderr)
  sys.exit(1)

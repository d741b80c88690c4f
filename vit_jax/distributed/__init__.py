"""Devices and processes: strategies that spread a step, and the processes of one run."""

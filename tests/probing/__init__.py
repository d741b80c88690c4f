"""Tests of probes of loaded models."""

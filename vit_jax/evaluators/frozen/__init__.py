"""Evaluators on frozen features: few-shot, k-NN, linear probe, retrieval, nearest class mean."""

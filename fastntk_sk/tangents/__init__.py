"""Trainable subsets, per-sample Jacobians, the ladder, and the linearised model of one backbone."""

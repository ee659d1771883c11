"""Tests, and what they stand on: the PTX interpreter, the truth, the bounds."""

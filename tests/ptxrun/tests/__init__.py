"""Tests of the PTX interpreter itself."""

"""Fitting a run into the memory there is."""

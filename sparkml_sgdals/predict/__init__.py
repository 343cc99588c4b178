"""Predictions and recommendations of a model as DataFrames."""

"""The Estimator, the Model and their Params, as pyspark.ml has them."""

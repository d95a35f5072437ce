"""Names to classes without importing them: methods, data sets, nets. Nothing here imports torch."""

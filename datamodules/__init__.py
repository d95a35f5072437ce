"""One file for each family of data sets; ``bench.registry.datasets`` lists them."""

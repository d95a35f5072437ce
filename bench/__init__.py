"""A benchmark of ANN-to-SNN conversion: the machine, which knows no method and no data set by name."""

"""From a specification to a record: train or load, convert, evaluate, write."""

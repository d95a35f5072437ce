"""``bench import``: turns nets trained elsewhere into checkpoints of this suite."""

"""``bench import``: nets that others have trained, as checkpoints of this suite."""

"""``bench diagnose``: shows what a conversion loses in each layer, and why."""

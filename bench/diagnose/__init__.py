"""What a conversion loses, layer by layer, and why."""

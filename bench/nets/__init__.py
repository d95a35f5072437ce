"""The conversion papers' networks, in timm's registry."""

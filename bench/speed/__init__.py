"""How fast the suite is, as ratios within one run: ``python -m bench speed``.

Every figure is a ratio of two rates measured in turn, pair by pair, so that a machine that is slow for a minute slows
both. Nets have random weights, thresholds at the 90th percentile of their inputs, and images of normal noise: speed
depends on shapes and on how many neurons fire, not on accuracy.
"""

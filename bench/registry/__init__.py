"""What the torch-free side needs to know of methods, data sets and nets, declared once. Nothing here imports torch."""

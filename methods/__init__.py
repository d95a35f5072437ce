"""One file, one paper, one LightningModule; ``bench.registry.methods`` lists them."""

"""Trained and converted networks in the formats of others: safetensors with a model card, ONNX, NIR."""

"""Trained and converted networks in exchange formats: safetensors with a model card, ONNX, NIR."""

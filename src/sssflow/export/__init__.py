"""ONNX export, parity, model card."""

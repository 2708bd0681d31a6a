"""Trained models as folders of their own: weights, configuration, model card, ONNX."""

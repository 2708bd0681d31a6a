"""Training losses that are not distillation, pure PyTorch."""

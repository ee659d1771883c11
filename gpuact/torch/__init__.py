"""gpuact for PyTorch; loaded only when torch is in use."""

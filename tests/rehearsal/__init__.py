"""The CUDA path without a GPU: its tensors have shapes, types, strides and a device, and no numbers."""

"""What the GPU backends share: device arrays, the chips, kernels compiled ahead of time."""

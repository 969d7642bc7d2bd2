import torch

# Tiny tensors: what two threads would save is less than their meeting after every operation costs (several
# milliseconds each on a busy machine, and there are thousands).
torch.set_num_threads(1)

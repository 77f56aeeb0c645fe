"""
What the fused engine computes with: linear layers, multilayer perceptrons, Adam, the squashed Gaussian, critics.

Pure torch without autograd inside, and no reinforcement learning but for what a critic's loss is. Each kernel writes to the
parameters and moments that the model's own modules and optimizers hold, and owns no state but scratch memory.
"""

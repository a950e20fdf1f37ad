"""Operations of a network: the measure of a training budget that does not depend on the machine."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# A training step counts as three forward passes: forward, gradients of activations, gradients of weights.
PASSES_OF_A_STEP = 3


@torch.inference_mode()
def operations_per_image(model: nn.Module, image_size: int) -> int:
    """Return the operations of a forward pass per image of `image_size` px.

    Counts 2 per multiply-add of convolutions and linear layers. This is the convention of airbench (Jordan, arXiv
    2404.00498, 2024). `model` has a `config` (ModelConfig).
    """
    image = torch.zeros(1, model.config.n_channels, image_size, image_size, device=next(model.parameters()).device)
    training = [module for module in model.modules() if module.training]
    try:
        with FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        for module in training:
            module.training = True
    return counter.get_total_flops()

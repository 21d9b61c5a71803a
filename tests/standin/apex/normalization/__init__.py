import torch
import torch.nn.functional as F


class FusedLayerNorm(torch.nn.Module):
    """In one precision, as the kernel; under autocast everything is cast to autocast's."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()
        self.normalized_shape = torch.Size(
            (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        )
        self.eps, self.elementwise_affine, self.memory_efficient = eps, elementwise_affine, memory_efficient
        self.weight = torch.nn.Parameter(torch.ones(self.normalized_shape))
        self.bias = torch.nn.Parameter(torch.zeros(self.normalized_shape))

    def forward(self, input):
        given = (input, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):
            given = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in given)
        assert len({tensor.dtype for tensor in given}) == 1, "one precision for input, weight and bias"
        with torch.autocast("cpu", enabled=False):
            return F.layer_norm(given[0], self.normalized_shape, *given[1:], self.eps)

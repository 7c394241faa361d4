"""The network before export behind the device's Embedder protocol, to compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pilltrack.core.embedder import l2_normalise
from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.models import EmbeddingNet, load_network

BATCH = 64


class TorchEmbedder:
    """Photos -> unit embeddings with the fp32 torch network."""

    def __init__(self, net: EmbeddingNet, input_size_px: int, space: str) -> None:
        self.net = net.eval()
        self.input_size_px = input_size_px
        self.dim = int(net.head.out_features)
        self.space = space

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit embeddings (N, D) float32 of RGB crops (H, W, 3) uint8."""
        parts = [np.empty((0, self.dim), np.float32)]
        device = self.net.head.weight.device
        with torch.inference_mode():
            for start in range(0, len(crops), BATCH):
                resized = [
                    to_model_input(c, self.input_size_px) for c in crops[start : start + BATCH]
                ]
                images = torch.from_numpy(np.stack(resized)).to(device).float()
                parts.append(l2_normalise(self.net(images).cpu().numpy()))
        return np.concatenate(parts)


def open_torch_embedder(network: Path) -> TorchEmbedder:
    """The embedder of a file written by train or distill."""
    net, input_size_px = load_network(network)
    return TorchEmbedder(net, input_size_px, space=f"torch:{network.name}")

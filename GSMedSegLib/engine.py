"""The engine: encode a ROI once, decode clicks from it as often as wanted."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from GSMedSegLib import decoder
from GSMedSegLib.layers import for_inference
from GSMedSegLib.network import Network, twice_as_fine
from GSMedSegLib.prompt_maps import Prompts, prompt_maps

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Embedding:
    """What is kept of an encoded ROI: all that does not depend on the prompts.

    Attributes:
        low: (1, C, D/2, H/2, W/2), channels-last, in the engine's precision.
        image_low: (1, 1, D/2, H/2, W/2) float32, the image averaged to half resolution.
        mixer_image: the mixer's share of the above, None for a network without mixer.
        detail_image: (1, M, D, H, W) the share of the mixer's step to full resolution, None for one without.
    """

    low: Tensor
    image_low: Tensor
    mixer_image: Tensor | None
    detail_image: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        kept = (self.low, self.image_low, self.mixer_image, self.detail_image)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    @property
    def roi(self) -> tuple[int, int, int]:
        """(D, H, W) of the ROI."""
        d, h, w = self.low.shape[-3:]
        return 2 * d, 2 * h, 2 * w


class ImageKey:
    """Stands for an image in the keys of embeddings; when nobody has it any more, they go, too."""

    def of(self, *roi: Hashable) -> Hashable:
        """The key of a ROI in this image."""
        return (weakref.ref(self), *roi)


class Engine:
    """Runs a network: ROIs in, logits out.

    The engine takes the network over: its layers are replaced in place by faster ones that compute the same.

    Args:
        network: from `build_network`.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        precision: "fp32", "bf16" or "fp16" (the last on CUDA only); "auto" is bf16 where the processor has
            it.
        cache_gb: memory for embeddings; the least recently used go first. The latest is always kept.
        metadata: what the checkpoint says about itself, such as the ROI it was trained on.

    Raises:
        ValueError: unknown device or precision, or one that this machine does not have.
    """

    def __init__(
        self,
        network: Network,
        device: str = "auto",
        precision: str = "fp32",
        cache_gb: float = 2.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.device = find_device(device)
        self.precision = find_precision(precision, self.device)
        self.network = for_inference(network.to(self.device), self.precision)
        self.shape = network.shape
        self.metadata = dict(metadata or {})
        self._cache: OrderedDict[Hashable, Embedding] = OrderedDict()
        self._cache_bytes = int(cache_gb * 2**30)
        self._position: tuple[tuple[int, ...], Tensor] | None = None
        self.encoded = 0
        """ROIs encoded so far: what a test or a progress bar may want to count."""
        self.interrupt: Callable[[], None] | None = None
        """Called before every encoding and decoding; may raise to break off. Nothing is left half done."""

    def encode(self, roi: Tensor | Callable[[], Tensor], key: Hashable | None = None) -> Embedding:
        """Encode a ROI, or take it from the cache.

        Args:
            roi: (D, H, W) float32 intensities as the network was trained on, each side a multiple of
                `shape.stride`; or what makes them, called only when they are not in the cache.
            key: names image and ROI, see `ImageKey`; None keeps the embedding out of the cache.

        Raises:
            ValueError: a side that is not a multiple of the stride, or values that are not finite.
        """
        if key is not None and key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._encode(roi() if callable(roi) else roi)
        if key is not None:
            for gone in [known for known in self._cache if _is_of_no_image(known)]:
                del self._cache[gone]
            self._cache[key] = embedding
            while len(self._cache) > 1 and sum(e.nbytes for e in self._cache.values()) > self._cache_bytes:
                self._cache.popitem(last=False)
        return embedding

    def cached(self, key: Hashable) -> bool:
        """Whether a ROI's embedding is in the cache."""
        return key in self._cache

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    @torch.inference_mode()
    def _encode(self, roi: Tensor) -> Embedding:
        if self.interrupt is not None:
            self.interrupt()
        stride = self.shape.stride
        if roi.ndim != 3 or any(side % stride or side == 0 for side in roi.shape):
            raise ValueError(
                f"a ROI has three sides that are multiples of {stride} voxels; got {tuple(roi.shape)}"
            )
        if not torch.isfinite(roi).all():
            raise ValueError(
                "a ROI must have finite intensities; got NaN or infinity; repair the image first"
            )
        image = roi.to(self.device, torch.float32)[None, None]
        encoded = self.network.encode(image.to(memory_format=torch.channels_last_3d))
        low = encoded.low.contiguous(memory_format=torch.channels_last_3d)
        self.encoded += 1
        mixer = self.network.point_head.mixer
        detail = mixer.detail if mixer is not None else None
        return Embedding(
            low,
            encoded.image_low,
            mixer.image_in(low) if mixer is not None else None,
            detail.image_in(encoded.full) if detail is not None else None,
        )

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        point_coords: np.ndarray | Tensor,
        point_labels: np.ndarray | Tensor,
        prev_logits: Tensor | None = None,
    ) -> Tensor:
        """Logits of several objects from their clicks.

        Args:
            embedding: an encoded ROI.
            point_coords: (R, N, 3) voxels (k, j, i) in the ROI.
            point_labels: (R, N) 1 foreground, 0 background, -1 padding (3 / 2 / special classes).
            prev_logits: (R, D, H, W) the objects' logits so far; a network without mixer has no use for them.

        Returns:
            (R, D, H, W) float32 on the CPU or GPU the engine runs on; positive inside.

        Raises:
            ValueError: arrays of the wrong shape.
        """
        if self.interrupt is not None:
            self.interrupt()
        coords = torch.as_tensor(point_coords).to(self.device)
        labels = torch.as_tensor(point_labels).to(self.device)
        if coords.ndim != 3 or coords.shape[-1] != 3 or coords.shape[:2] != labels.shape:
            raise ValueError(
                f"expected (R, N, 3) coordinates and (R, N) labels; got {tuple(coords.shape)} "
                f"and {tuple(labels.shape)}"
            )
        rows = [
            self._decode_one(
                embedding,
                coords[r : r + 1],
                labels[r : r + 1],
                None if prev_logits is None else prev_logits[r],
            )
            for r in range(coords.shape[0])
        ]
        return torch.stack(rows)

    @torch.inference_mode()
    def rate(self, embedding: Embedding, logits: Tensor) -> float:
        """The Dice that the network expects of a mask it gave.

        Args:
            embedding: the ROI that the mask was decoded from.
            logits: (D, H, W).

        Returns:
            0..1.

        Raises:
            ValueError: the weights have no rater (`shape.rater`).
        """
        rater = self.network.point_head.rater
        if rater is None:
            raise ValueError("these weights cannot rate a mask: they were trained without a rater")
        probability = F.avg_pool3d(torch.sigmoid(logits.to(self.device))[None, None], 2)
        return float(rater(embedding.low, probability.to(embedding.low.dtype)).sigmoid())

    def _decode_one(
        self, embedding: Embedding, coords: Tensor, labels: Tensor, prev_logits: Tensor | None
    ) -> Tensor:
        head = self.network.point_head
        kept = labels[0] != -1
        previous = None if prev_logits is None else prev_logits.to(self.device)[None, None]
        prompts = Prompts(
            coords[:, kept] if kept.any() else coords, labels[:, kept] if kept.any() else labels, previous
        )
        low, fine = embedding.low, None
        tokens = head.tokens(prompts, low)[0]
        if head.mixer is not None:
            maps = prompt_maps(low, embedding.image_low, prompts)
            added, coarse, mixed = head.mixer(
                embedding.mixer_image, maps.contiguous(memory_format=torch.channels_last_3d)
            )
            low = (low + added).contiguous(memory_format=torch.channels_last_3d)
            fine = twice_as_fine(coarse.float())
            if head.mixer.detail is not None:
                fine += head.mixer.detail(embedding.detail_image, mixed, previous).float()
        image_tokens = low.permute(0, 2, 3, 4, 1).reshape(-1, low.shape[1])
        keys, vector = decoder.transform(
            head, image_tokens, self._position_of(low.shape[-3:]), tokens.float()
        )
        logits = decoder.upscale(head, keys.view(*low.shape[-3:], -1).permute(3, 0, 1, 2)[None], vector)
        return logits if fine is None else logits + fine[0, 0]

    def _position_of(self, size: Sequence[int]) -> Tensor:
        """(T, C) positional encoding of a grid; the last one is kept."""
        if self._position is None or self._position[0] != tuple(size):
            encoding = self.network.point_head.pe_layer(tuple(size)).flatten(1).T.contiguous()
            self._position = (tuple(size), encoding)
        return self._position[1]


def find_device(name: str) -> torch.device:
    """The torch device behind "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: an unknown name, or CUDA asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and name.split(":")[0] != "cuda":
        raise ValueError(f"expected device auto, cpu or cuda; got {name!r}")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name} was asked for, but torch {torch.__version__} finds no CUDA GPU; use --device cpu"
        )
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is fast here: emulated it is slower than float32, on a CPU by far."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype behind "auto", "fp32", "bf16" or "fp16" on a device.

    Raises:
        ValueError: an unknown name, or a precision that the device has no fast arithmetic for.
    """
    if name == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    if name not in PRECISIONS:
        raise ValueError(f"expected precision auto, {', '.join(PRECISIONS)}; got {name!r}")
    if name == "bf16" and not has_bf16(device):
        raise ValueError(f"this {device.type} has no bfloat16 arithmetic; use precision fp32")
    if name == "fp16" and device.type == "cpu":
        raise ValueError("fp16 is for CUDA; use precision fp32 or bf16 on a CPU")
    return PRECISIONS[name]


def _is_of_no_image(key: Hashable) -> bool:
    """Whether a key is of an image that nobody has any more."""
    return isinstance(key, tuple) and isinstance(key[0], weakref.ref) and key[0]() is None

"""The comparator: the same regressor and loss in plain PyTorch, as its users would write them."""

import math

import torch
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class Regressor(nn.Module):
    """ResNet-50 with RLE's head: NCHW images -> mu and sigma (B, K, 2)."""

    def __init__(self, joints: int = 17):
        super().__init__()
        stages, channels = [], 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(Bottleneck(channels, 64 * 2**stage, stride))
                channels = 256 * 2**stage
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            *stages,
        )
        self.mean = nn.Linear(channels, 2 * joints)
        self.sigma = nn.Linear(channels, 2 * joints)

    def forward(self, image):
        features = self.backbone(image).mean(dim=(2, 3))
        mu = self.mean(nn.functional.normalize(features, dim=1))
        return mu.unflatten(1, (-1, 2)), torch.sigmoid(self.sigma(features)).unflatten(1, (-1, 2))


class Heatmaps(nn.Module):
    """SimpleBaseline: NCHW images -> keypoints (B, K, 2) in cells, and scores (B, K)."""

    def __init__(self, joints: int = 17):
        super().__init__()
        self.backbone, channels, layers = Regressor(joints).backbone, 2048, []
        for _ in range(3):
            layers += [
                nn.ConvTranspose2d(channels, 256, 4, 2, 1, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(inplace=True),
            ]
            channels = 256
        self.head = nn.Sequential(*layers, nn.Conv2d(channels, joints, 1))

    def forward(self, image):
        return peaks(self.head(self.backbone(image)))


def peaks(maps):
    """Each map's highest cell, moved by a quarter of one to the higher of its two neighbours."""
    scores, cells = maps.flatten(2).max(dim=2)
    width = maps.shape[3]
    along_x = nn.functional.pad(maps[..., 2:] - maps[..., :-2], (1, 1))
    along_y = nn.functional.pad(maps[:, :, 2:] - maps[:, :, :-2], (0, 0, 1, 1))
    slopes = [each.flatten(2).gather(2, cells[..., None]) for each in (along_x, along_y)]
    places = torch.stack([cells % width, cells // width], dim=-1)
    return places + 0.25 * torch.cat(slopes, dim=-1).sign(), scores


class RealNVP(nn.Module):
    def __init__(self, dims: int = 2, layers: int = 6, hidden: int = 64):
        super().__init__()

        def net() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(dims, hidden), nn.LeakyReLU(),
                nn.Linear(hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, dims),
            )  # fmt: skip

        self.scales = nn.ModuleList(net() for _ in range(layers))
        self.shifts = nn.ModuleList(net() for _ in range(layers))
        mask = torch.arange(dims) == dims - 1
        masks = [mask if layer % 2 == 0 else ~mask for layer in range(layers)]
        self.register_buffer("masks", torch.stack(masks).float())

    def log_prob(self, x):
        log_det = 0.0
        for layer in reversed(range(len(self.scales))):
            kept, moved = self.masks[layer], 1 - self.masks[layer]
            scale = torch.tanh(self.scales[layer](x * kept)) * moved
            x = x * kept + moved * (x - self.shifts[layer](x * kept)) * torch.exp(-scale)
            log_det = log_det - scale.sum(-1)
        return log_det - 0.5 * (x**2).sum(-1) - math.log(2 * math.pi)


def rle_loss(flow: RealNVP, mu, sigma, target, weight):
    """Equation 8 with a Laplace density, the mean over the batch."""
    residual = (target - mu) / sigma
    per_coordinate = residual.abs() + math.log(2) + torch.log(sigma)
    per_joint = (weight * per_coordinate).sum(-1) - weight.amin(-1) * flow.log_prob(residual)
    return per_joint.sum() / len(mu)

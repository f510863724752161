"""A plain PyTorch loop: channels_last, Adam, the teacher under no_grad in every step.

With --bfloat16 its forward passes are under autocast, and its Adam is the fused one; --compile compiles the networks.
"""

import measuring
import torch
from torch import nn
from torch.nn import functional


class DenseLayer(nn.Module):
    """BN, ReLU6, 1x1 convolution, BN, ReLU6, 3x3 convolution; the new features before the old."""

    def __init__(self, channels: int, growth_rate: int):
        super().__init__()
        self.new = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, 4 * growth_rate, 1),
            nn.BatchNorm2d(4 * growth_rate),
            nn.ReLU6(),
            nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1),
        )

    def forward(self, x):
        return torch.cat([self.new(x), x], dim=1)


def densenet(growth_rate: int) -> nn.Module:
    """The notebook's DenseNet-121-like network."""
    channels = 2 * growth_rate
    layers = [nn.Conv2d(1, channels, 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2, padding=1)]
    for block, pairs in enumerate((6, 12, 24, 16)):
        for _ in range(pairs):
            layers.append(DenseLayer(channels, growth_rate))
            channels += growth_rate
        if block < 3:
            layers += [nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def mlp(units: tuple[int, ...]) -> nn.Module:
    """ReLU layers on flat images."""
    layers, width = [nn.Flatten()], 28 * 28
    for next_width in units:
        layers += [nn.Linear(width, next_width), nn.ReLU()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def main() -> None:
    asked = measuring.arguments()
    built = {
        role: densenet(measuring.GROWTH[role]) if asked.net == "densenet" else mlp(measuring.UNITS[role])
        for role in measuring.roles(asked.phase)
    }
    built = {role: net.to(memory_format=torch.channels_last) for role, net in built.items()}
    model = built["student" if asked.phase == "distill" else asked.phase].train()
    optimizer = torch.optim.Adam(model.parameters(), lr=measuring.LEARNING_RATE, fused=asked.bfloat16)
    called = {role: torch.compile(net) if asked.compile else net for role, net in built.items()}
    student = called["student" if asked.phase == "distill" else asked.phase]
    half = torch.autocast("cpu", torch.bfloat16, enabled=asked.bfloat16)
    images_in_memory, labels_in_memory = (torch.from_numpy(array) for array in measuring.training_images())
    order = torch.randperm(len(labels_in_memory))
    clock = measuring.Clock(asked.batch_size)
    for step in range(asked.steps):
        chosen = order[torch.arange(step * asked.batch_size, (step + 1) * asked.batch_size) % len(order)]
        images = images_in_memory[chosen].unsqueeze(1).float() / 255
        if images.shape[-1] != asked.image_size:
            images = functional.interpolate(images, size=asked.image_size, mode="bilinear")
        images, labels = images.contiguous(memory_format=torch.channels_last), labels_in_memory[chosen].long()
        with half:
            z = student(images)
        z = z.float()
        loss = functional.cross_entropy(z, labels)
        if asked.phase == "distill":
            built["teacher"].eval()
            with torch.no_grad(), half:
                v = called["teacher"](images)
            v = v.float()
            t = measuring.TEMPERATURE
            soft = functional.kl_div(
                functional.log_softmax(z / t, 1),
                functional.log_softmax(v / t, 1),
                reduction="batchmean",
                log_target=True,
            )
            loss = (1 - measuring.ALPHA) * loss + measuring.ALPHA * t * t * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.finished()
    clock.report()


main()

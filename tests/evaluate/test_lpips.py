"""LPIPS equals a plain computation by torch, from weights by the names of the published files."""

import numpy as np
import pytest

from convert import load_lpips
from lumina_jax.errors import InputError
from lumina_jax.evaluate.lpips import NETWORKS, Lpips

torch = pytest.importorskip("torch")

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG_WIDTHS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}


def random_weights(network: str, rng: np.random.Generator, thinner: int = 8) -> tuple[dict, dict]:
    """(heads, backbone) in the published names, with an eighth of the channels."""
    if network == "AlexNet":
        shapes = {index: (out // thinner, max(3, into // thinner), edge) for index, (out, into, edge) in ALEX.items()}
    else:
        widths = [3, *(width // thinner for width in VGG_WIDTHS.values())]
        shapes = {index: (widths[number + 1], widths[number], 3) for number, index in enumerate(VGG_WIDTHS)}
    backbone = {}
    for index, (out, into, edge) in shapes.items():
        deviation = (2 / (into * edge * edge)) ** 0.5
        backbone[f"features.{index}.weight"] = rng.normal(0, deviation, (out, into, edge, edge)).astype(np.float32)
        backbone[f"features.{index}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
    backbone["classifier.1.weight"] = np.zeros((4, 4), np.float32)
    widths = [shapes[conv.index][0] for conv in NETWORKS[network] if conv.tap]
    heads = {f"lin{n}.model.1.weight": rng.random((1, width, 1, 1), np.float32) for n, width in enumerate(widths)}
    return heads, backbone


def torch_features(network: str) -> list:
    """torchvision's features as (index of the convolution or None, function): written down from its model definitions."""
    relu, functional = torch.relu, torch.nn.functional
    if network == "AlexNet":
        pool = (None, lambda x: functional.max_pool2d(x, 3, 2))
        first, second = (0, dict(stride=4, padding=2)), (3, dict(padding=2))
        return [first, relu, "tap", pool, second, relu, "tap", pool] + [
            step for index in (6, 8, 10) for step in ((index, dict(padding=1)), relu, "tap")
        ]
    steps, pool = [], (None, lambda x: functional.max_pool2d(x, 2, 2))
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        steps += [step for index in block for step in ((index, dict(padding=1)), relu)] + ["tap", pool]
    return steps


def by_torch(network: str, heads: dict, backbone: dict, first: np.ndarray, second: np.ndarray) -> float:
    """LPIPS v0.1 in float64, step by step."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    taps = []
    for picture in (first, second):
        x = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float64)) / 255 * 2 - 1
        x, found = (x - shift) / scale, []
        for step in torch_features(network):
            if step == "tap":
                found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
            elif callable(step):
                x = step(x)
            elif step[0] is None:
                x = step[1](x)
            else:
                weight, bias = (
                    torch.from_numpy(backbone[f"features.{step[0]}.{n}"]).double() for n in ("weight", "bias")
                )
                x = torch.nn.functional.conv2d(x, weight, bias, **step[1])
        taps.append(found)
    lines = [torch.from_numpy(heads[f"lin{number}.model.1.weight"]).double() for number in range(5)]
    return sum(
        torch.nn.functional.conv2d((a - b) ** 2, line).mean().item() for a, b, line in zip(*taps, lines, strict=True)
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_equals_torch(network):
    rng = np.random.default_rng(7)
    heads, backbone = random_weights(network, rng)
    first, second = rng.integers(0, 256, (2, 40, 56, 3), np.uint8)
    lpips = Lpips.of(heads, backbone)
    assert lpips.network == network and lpips(first, first) == 0
    assert lpips(first, second) == pytest.approx(by_torch(network, heads, backbone, first, second), rel=1e-5)
    nearer = first.copy()
    nearer[:8] = second[:8]
    assert 0 < lpips(first, nearer) < lpips(first, second)


def test_reads_files_of_torch(tmp_path):
    heads, backbone = random_weights("AlexNet", np.random.default_rng(1))
    for name, state in (("alex.pth", heads), ("alexnet.pth", backbone)):
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / name)
    picture = np.zeros((32, 32, 3), np.uint8)
    read = load_lpips(tmp_path / "alex.pth", tmp_path / "alexnet.pth")
    assert read(picture, picture + 9) == Lpips.of(heads, backbone)(picture, picture + 9)
    with pytest.raises(
        InputError, match=r"alexnet.pth and .*alex.pth: .* of no backbone of LPIPS; give torchvision's AlexNet"
    ):
        load_lpips(tmp_path / "alexnet.pth", tmp_path / "alex.pth")


def test_files_of_two_networks_are_refused():
    rng = np.random.default_rng(2)
    heads, backbone = random_weights("VGG16", rng)
    with pytest.raises(InputError, match=r"lin0.model.1.weight has the shape .* but AlexNet needs 1 x 8 x 1 x 1"):
        Lpips.of({**heads, "lin0.model.1.weight": rng.random((1, 5, 1, 1))}, random_weights("AlexNet", rng)[1])
    del heads["lin3.model.1.weight"]
    with pytest.raises(InputError, match=r"lack lin3\.model\.1\.weight"):
        Lpips.of(heads, backbone)


def test_sizes_must_be_equal_and_large_enough():
    lpips = Lpips.of(*random_weights("AlexNet", np.random.default_rng(3)))
    with pytest.raises(InputError, match=r"48x32 and 32x32 px; LPIPS compares pictures of one size"):
        lpips(np.zeros((32, 48, 3), np.uint8), np.zeros((32, 32, 3), np.uint8))

"""The published weights of LPIPS, as PyTorch saves them."""

from convert.tensor_files import open_tensors
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.evaluate.lpips import Lpips
from lumina_jax.places import Place, place


def load_lpips(heads: str | Place, backbone: str | Place) -> Lpips:
    """LPIPS from two files: its linear weights (weights/v0.1/alex.pth or vgg.pth of the package lpips),
    and torchvision's weights of that network (alexnet-owt-7be5be79.pth or vgg16-397923af.pth).

    Raises MissingFileError, MissingPackageError without torch unless both are .safetensors, InputError for other files.
    """
    tensors = open_tensors(place(heads)), open_tensors(place(backbone))
    with prefixed_errors(f"{heads} and {backbone}", InputError):
        return Lpips.of(*tensors)

"""Checkpoints of other frameworks in and out: PyTorch Chameleon and Lumina-mGPT <-> lumina_jax."""

from convert.chameleon import image_layout, load_model, model_form, save_model, target_size
from convert.perceptual import load_lpips
from convert.vqvae import load_image_tokenizer, load_vqvae, save_vqvae

__all__ = [
    "image_layout",
    "load_image_tokenizer",
    "load_lpips",
    "load_model",
    "load_vqvae",
    "model_form",
    "save_model",
    "save_vqvae",
    "target_size",
]

"""A model by its address: a path or URL as it is, hf://OWNER/NAME as a folder of this machine, with the tokenizers that it lacks.

The one door for the command line and for Python.
"""

from dataclasses import dataclass

from convert import tokenizer_files
from convert.convert import open_source
from convert.metadata import experiment_of
from convert.needed_files import checkpoint_files, tokenizer_names
from convert.sources import VQ_PATH
from convert.vqvae import VQGAN_NAME
from lumina_jax.errors import MissingFileError, StorageError, UserError
from lumina_jax.hub.address import is_hub, parse
from lumina_jax.hub.fetch import fetch
from lumina_jax.places import place
from lumina_jax.progress import print_line

TOKENIZER_REPOSITORIES = ("hf://Alpha-VLLM/Chameleon_7B_mGPT",)
"""Where the authors of Lumina-mGPT keep text_tokenizer.json, vqgan.yaml and vqgan.ckpt: in its original_tokenizers/."""
RELEASE_FORM = "https://ai.meta.com/resources/models-and-libraries/chameleon-downloads/"
"""Where Meta gives its release, which has them in tokenizer/, to those who accept its licence."""
TOKENIZER, VQ = "text_tokenizer.json", f"{VQGAN_NAME} and its .yaml"


@dataclass(frozen=True)
class LocalModel:
    """The ``folder`` (or URL) of a model's weights, and the paths of its ``tokenizer`` and image tokenizer ``vq``; "" for those
    that its experiment names or that are near the weights."""

    folder: str
    tokenizer: str = ""
    vq: str = ""


def fetch_checkpoint(address: str) -> str:
    """The folder of the checkpoint at ``address``, fetched from the hub if it is an hf:// address. Raises UserErrors."""
    if not is_hub(address):
        return address
    hub = parse(address)
    folder = fetch(hub, lambda names: checkpoint_files(names, hub.folder, str(hub)))
    return str(folder / hub.folder)


def fetch_model(address: str, tokenizer: str = "", vq: str = "", required: bool = True) -> LocalModel:
    """The model at ``address``, with its tokenizer and image tokenizer, each of which may be a path, a URL or hf://.

    Of a model of the hub both are looked for in this order: as given; near the weights in its own repository; in
    TOKENIZER_REPOSITORIES. A model on this machine or a store is left as it is. Raises MissingFileError naming every place that was
    looked at, unless they are not ``required``: then a line says so.
    """
    tokenizer, vq = (fetch_tokenizer(given, kind) for given, kind in ((tokenizer, TOKENIZER), (vq, VQ)))
    if not is_hub(address):
        return LocalModel(address, tokenizer, vq)
    folder = fetch_checkpoint(address)
    found = tokenizer_files.find(place(folder), None, tokenizer, vq)
    missing = {kind: path for kind, path in ((TOKENIZER, found.tokenizer), (VQ, found.vq)) if not path}
    if not missing or not (missing := _unnamed(folder, missing)):
        return LocalModel(folder, tokenizer, vq)
    places = [f"{address} has none in its root, tokenizer/ and original_tokenizers/"]
    for repository in TOKENIZER_REPOSITORIES:
        for kind in [kind for kind in missing if not missing[kind]]:
            try:
                missing[kind] = fetch_tokenizer(repository, kind)
            except (MissingFileError, StorageError) as error:
                places.append(str(error))
    if absent := [kind for kind, path in missing.items() if not path]:
        _tell_absent(folder, absent, places, required)
    return LocalModel(folder, tokenizer or missing.get(TOKENIZER) or "", vq or missing.get(VQ) or "")


def fetch_tokenizer(address: str, kind: str) -> str:
    """The path of the file of ``kind`` (TOKENIZER or VQ) at an hf:// address; any other address as it is."""
    if not is_hub(address):
        return address
    hub, number = parse(address), (TOKENIZER, VQ).index(kind)

    def choose(names: list[str]) -> list[str]:
        if not (files := tokenizer_names(names, hub.folder)[number]):
            raise MissingFileError(f"{hub} holds no {kind}, in its root, tokenizer/ or original_tokenizers/")
        return files

    folder = fetch(hub, choose)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return str(folder / choose(names)[0])


def _unnamed(folder: str, missing: dict[str, None]) -> dict[str, None]:
    """``missing`` without what a checkpoint's own experiment names."""
    experiment = experiment_of(open_source(folder))
    named = {TOKENIZER: experiment.data.tokenizer, VQ: experiment.vq.path} if experiment else {}
    return {kind: None for kind in missing if not named.get(kind)}


def _tell_absent(folder: str, absent: list[str], places: list[str], required: bool) -> None:
    text = (
        f"no {' and no '.join(absent)} for this model: {'; '.join(dict.fromkeys(places))}. Get them from Meta's Chameleon release "
        f"({RELEASE_FORM}, folder tokenizer/) into one folder, and give it as --tokenizer FOLDER --vq FOLDER"
    )
    if required and not (absent == [VQ] and _has_encoder(folder)):
        raise MissingFileError(text)
    print_line(f"note: {text}")


def _has_encoder(folder: str) -> bool:
    """Whether a checkpoint carries an encoder of its own, by which it reads pictures."""
    try:
        return any(row.path.startswith(VQ_PATH) for row in open_source(folder).rows)
    except UserError:
        return False

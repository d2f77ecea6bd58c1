"""What is measured of a model while it trains: the loss on records that it is not trained on, and sheets of what it paints and of
what its image tokenizer keeps of pictures."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.pipeline import batches, open_shards
from lumina_jax.errors import InputError
from lumina_jax.evaluate.reconstruction import comparison, picture_files, reconstructions
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.pictures.picture_table import draw_tables
from lumina_jax.sample import generate
from lumina_jax.sample.picture import grid, pictures
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sharding import data_share, global_batch
from lumina_jax.storage import StorageFolder
from lumina_jax.train.step import TrainState
from lumina_jax.train.watch import HELD_OUT, MeshLoss, Watcher
from lumina_jax.vocab import Vocab

SHEETS = "sheets"
"""The folder in that of the run."""
SHEET, RECONSTRUCTIONS = "samples", "reconstructions"
"""The names of the sheets in the loggers."""
RECONSTRUCTION_TITLE = (
    "Reconstructions",
    "What the image tokenizer keeps of each picture: the best that the model can paint.",
)
COLUMNS = 4
"""Pictures beside each other on a sheet."""
SEED = 0
"""Of the order of held-out records: the first batches are the same in every run."""


def watchers(
    cfg: Experiment, vocab: Vocab, mesh: Mesh, load_tokenizer: Callable[[str], ImageTokenizer]
) -> list[Watcher]:
    """What ``cfg.watch`` asks for; ``load_tokenizer`` reads the image tokenizer at a path.

    Raises InputError and MissingFileError where a folder or a file of prompts does not serve.
    """
    found: list[Watcher] = [HeldOutLoss(cfg, vocab, mesh)] if cfg.watch.held_out_every else []
    if cfg.watch.sheet_every:
        vq = load_tokenizer(cfg.vq.path)
        found += [SampleSheets(cfg, vocab, vq)] if cfg.watch.prompts else []
        found += [ReconstructionSheet(cfg, vq)] if cfg.watch.pictures else []
    return found


class HeldOutLoss:
    """The mean cross-entropy over the learned tokens of ``cfg.watch.held_out``, under the full context, on the mesh of the run.

    The batches have the shapes of the run's microbatches, so that there is one program for each row length, and memory enough. Rows
    that repeat to fill the last batch count again.

    Raises InputError and MissingFileError as :func:`lumina_jax.data.pipeline.batches`.
    """

    name = "measuring the held-out loss"

    def __init__(self, cfg: Experiment, vocab: Vocab, mesh: Mesh):
        self.every, self._vocab, self._mesh = cfg.watch.held_out_every, vocab, mesh
        self._cfg = held_out_data(cfg)
        self._share = data_share(mesh, jax.process_index())
        lengths = [folder.lengths for folder in open_shards(self._cfg, vocab)]
        epoch = BatchPlan(lengths, self._cfg, SEED).steps
        self._count = min(cfg.watch.held_out_batches or epoch, epoch)
        self._loss = MeshLoss(cfg, mesh)

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """{"held_out": nats a token}."""
        return {HELD_OUT: self._loss(state.model, self._batches())}

    def images(self) -> dict[str, Image.Image]:
        """None: it measures numbers."""
        return {}

    def _batches(self) -> Iterator[Batch]:
        rows = batches(self._cfg.path, self._cfg, self._vocab, SEED, 0, self._count, *self._share)
        return (global_batch(batch, self._mesh) for batch in rows)


class SampleSheets:
    """Paints the first prompts of ``cfg.watch.prompts`` as squares of the model's area, on the first device of process 0.

    Raises InputError and MissingFileError where the file does not serve.
    """

    name = "painting a sheet"

    def __init__(self, cfg: Experiment, vocab: Vocab, vq: ImageTokenizer):
        self.every, self._cfg, self._vocab, self._vq = cfg.watch.sheet_every, cfg, vocab, vq
        builder = PromptBuilder(vq, vocab, cfg.data, as_is=cfg.vq.kind == "patch")
        texts = read_prompts(cfg.watch.prompts)[: cfg.watch.sheet_prompts]
        self._sheets: dict[str, Image.Image] = {}
        self._prompts = [builder.generate(text, None, cfg.sample) for text in texts]

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Writes the sheet of ``step``; there is no number."""
        model = on_first_device(state.model, jnp.dtype(self._cfg.mesh.compute))
        if jax.process_index() == 0:
            sheet = self._painted(model)
            save_sheet(sheet, self._cfg.out, f"{step:08d}.png")
            self._sheets = {SHEET: sheet}
        return {}

    def images(self) -> dict[str, Image.Image]:
        """The newest sheet, in process 0."""
        return self._sheets

    def _painted(self, model: Chameleon) -> Image.Image:
        """A sheet of the picture of each prompt, blank where the answer holds none."""
        ids, sizes = zip(*((prompt.ids, prompt.size) for prompt in self._prompts), strict=True)
        key, settings = jax.random.key(self._cfg.seed), self._prompts[0].cfg
        answers = generate(model, ids, key, settings, self._vocab, sizes=sizes)
        found = [pictures(answer, self._vq, self._vocab)[:1] for answer in answers]
        blanks = [Image.new("RGB", (size[1] * self._vq.stride, size[0] * self._vq.stride), "white") for size in sizes]
        images = [images[0] if images else blank for images, blank in zip(found, blanks, strict=True)]
        return grid(images, COLUMNS, [prompt.text for prompt in self._prompts])


class ReconstructionSheet:
    """Shows the first pictures of ``cfg.watch.pictures`` beside what the image tokenizer keeps of them, with PSNR and SSIM.

    No training changes it, so it is made once, by process 0 when its first turn comes; the others do not look for the pictures.
    Raises InputError where these do not serve.
    """

    name = "encoding and decoding pictures"

    def __init__(self, cfg: Experiment, vq: ImageTokenizer):
        self.every, self._out, self._vq = cfg.watch.sheet_every, cfg.out, vq
        files = picture_files([cfg.watch.pictures]) if jax.process_index() == 0 else []
        self._files = files[: cfg.watch.sheet_prompts]
        self._made, self._new = False, {}

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Writes the sheet in its first turn; there is no number."""
        self._new = {}
        if jax.process_index() == 0 and not self._made:
            table = comparison(list(reconstructions(self._vq, self._files)))
            self._new, self._made = {RECONSTRUCTIONS: draw_tables(*RECONSTRUCTION_TITLE, [table])}, True
            save_sheet(self._new[RECONSTRUCTIONS], self._out, f"{RECONSTRUCTIONS}.png")
        return {}

    def images(self) -> dict[str, Image.Image]:
        """The sheet, in process 0, after the turn that made it."""
        return self._new


def save_sheet(sheet: Image.Image, out: str, name: str) -> None:
    """Writes a sheet of the run in ``out``, which may be a store."""
    StorageFolder(f"{out}/{SHEETS}").write(name, lambda path: sheet.save(path, format="PNG"))


def on_first_device(model: Chameleon, dtype: jnp.dtype) -> Chameleon:
    """A copy of a sharded model in ``dtype`` on the first device of this process; all processes call this together."""
    model = jax.jit(lambda tree: jax.tree.map(lambda w: w.astype(dtype), tree))(model)
    if jax.process_count() > 1:
        model = multihost_utils.process_allgather(model, tiled=True)
    return jax.device_put(model, jax.local_devices()[0]) if jax.process_index() == 0 else model


def read_prompts(file: str) -> list[str]:
    """The lines of a text file that are not empty. Raises MissingFileError without the file, InputError without such a line."""
    folder, _, name = file.rpartition("/")
    text = StorageFolder(folder or ".").read_bytes(name).decode(errors="replace")
    if lines := [line.strip() for line in text.splitlines() if line.strip()]:
        return lines
    raise InputError(f"watch.prompts={file} holds no prompt; write one a line")


def held_out_data(cfg: Experiment) -> DataConfig:
    """The settings of held-out batches: those of a microbatch of training, of other folders, without dropped contexts."""
    count = cfg.optim.accumulate
    rows = {name: getattr(cfg.data, name) // count for name in ("batch", "row_multiple")}
    return replace(cfg.data, path=cfg.watch.held_out, weights=(), drop_context=0.0, **rows)
